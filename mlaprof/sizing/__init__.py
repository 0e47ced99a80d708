"""Which sizes to capture: traces as steps, measured costs as curves, the best list under budgets, engines' lists."""
