"""What the editor asks: forecast, doctor, downloads."""
