"""What things are: frozen dataclasses over the standard library and numpy, shared by every room of the house."""
