"""One function a metric. Every module in this folder is imported with `landscape.sharpness`, in the order of names."""
