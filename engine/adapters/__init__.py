"""The only code that touches foreign APIs; one folder per foreign party."""
