"""What other people run: a plain web server with one calculator, fairchem's batcher on Ray Serve, torch-sim."""
