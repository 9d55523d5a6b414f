"""Long context: a small transformer trained on short sequences and asked about long ones."""
