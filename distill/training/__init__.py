"""One optimisation step and the loop around it; DeepSpeed lives in engine.py alone."""
