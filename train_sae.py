"""Stage 3: train sparse autoencoders on the activations; `-m` trains a whole grid."""

from typing import Any

import hydra
from omegaconf import DictConfig

from sparse_dict.launch import script


@hydra.main(version_base="1.3", config_path="conf", config_name="train_sae")
def main(cfg: DictConfig) -> Any:
    """Run the stage on a composed config."""
    return script.run_stage("train_sae", cfg)


if __name__ == "__main__":
    script.start(main)
