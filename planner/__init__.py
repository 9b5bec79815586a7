"""gpuplan."""
