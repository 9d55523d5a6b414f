"""What the kernels of all machines are made of: equations, sweeps, and what is alike around them."""
