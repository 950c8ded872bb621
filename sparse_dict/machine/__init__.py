"""The machine: devices, threads, processes, signals, the C compiler, progress bars."""
