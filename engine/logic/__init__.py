"""Pure decisions on plain numbers and headers. Standard library only, no torch."""
