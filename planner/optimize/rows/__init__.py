"""One module per constraint family: a `define_*` function that appends its rows to a `MilpBuilder`."""
