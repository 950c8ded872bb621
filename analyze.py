"""Stage 4: compare the dictionaries of a study and write figures, tables and a report."""

import hydra
from omegaconf import DictConfig

from sparse_dict.launch import script


@hydra.main(version_base="1.3", config_path="conf", config_name="analyze")
def main(cfg: DictConfig) -> None:
    """Run the stage on a composed config."""
    script.run_stage("analyze", cfg)


if __name__ == "__main__":
    script.start(main)
