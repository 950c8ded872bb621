"""Stage 2: write the activations of one site of the transformer to shards."""

from sparse_dict.launch import script

if __name__ == "__main__":
    script.start_stage("harvest")
