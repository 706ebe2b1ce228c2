"""What fits: sizes, the plan, what is free."""
