"""Stage 3: train sparse autoencoders on the activations; `-m` trains a whole grid."""

import hydra
from omegaconf import DictConfig

from sparse_dict import stage


@hydra.main(version_base="1.3", config_path="conf", config_name="train_sae")
def main(cfg: DictConfig) -> None:
    """Run the stage on a composed config."""
    stage.run("train_sae", cfg)


if __name__ == "__main__":
    main()
