"""The program delta-transfer: arguments, commands and terminal output."""
