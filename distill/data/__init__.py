"""From video files and annotation files to batches: decode, sample, pack, label, plan, load."""
