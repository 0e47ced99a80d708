"""How a module is run: eager, in captured pieces, or as one graph. Takes any module; knows no layer and no clock."""
