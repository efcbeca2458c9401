"""What a person sees of a sweep: the live table, TensorBoard, the figures and the report."""
