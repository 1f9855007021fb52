"""What every room knows: records, batches, budgets, costs, how a model is run and judged."""
