"""Stage 1: train the small transformer."""

from sparse_dict.launch import script

if __name__ == "__main__":
    script.start_stage("train_lm")
