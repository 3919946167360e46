"""The paper's comparisons on the embedded task, cell by cell: methods, real budgets, seeds, variants."""
