"""Stage 2: write the activations of one site of the transformer to shards."""

import hydra
from omegaconf import DictConfig

from sparse_dict.launch import script


@hydra.main(version_base="1.3", config_path="conf", config_name="harvest")
def main(cfg: DictConfig) -> None:
    """Run the stage on a composed config."""
    script.run_stage("harvest", cfg)


if __name__ == "__main__":
    script.start(main)
