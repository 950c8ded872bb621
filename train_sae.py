"""Stage 3: train sparse autoencoders on the activations; `-m` trains a whole grid."""

from sparse_dict.launch import script

if __name__ == "__main__":
    script.start_stage("train_sae")
