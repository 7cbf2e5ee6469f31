"""The pass protocol, recipes of passes, notes and errors."""
