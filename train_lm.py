"""Stage 1: train the small transformer."""

import hydra
from omegaconf import DictConfig

from sparse_dict.launch import script


@hydra.main(version_base="1.3", config_path="conf", config_name="train_lm")
def main(cfg: DictConfig) -> None:
    """Run the stage on a composed config."""
    script.run_stage("train_lm", cfg)


if __name__ == "__main__":
    script.start(main)
