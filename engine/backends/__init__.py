"""Which kernel runs: a table of rows, the choice, and trial runs."""
