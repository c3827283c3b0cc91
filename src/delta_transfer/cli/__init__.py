"""The program delta-transfer: arguments, commands and what the terminal shows."""
