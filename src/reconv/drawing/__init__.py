"""What it looks like. Arrays and text in, pictures out; free of torch."""
