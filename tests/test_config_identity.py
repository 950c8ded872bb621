"""Which keys decide a result, and records of other versions."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from fault_study import composed, overrides

from sparse_dict.config import AdamWConfig, HarvestConfig, MuonConfig, TrackingConfig
from sparse_dict.config.identity import NEUTRAL, differences, record

ADAMW = AdamWConfig(
    lr=1e-2, min_lr_ratio=0.1, beta1=0.9, beta2=0.95, weight_decay=0.1, warmup_fraction=0.1,
    grad_clip=1.0,
)  # fmt: skip


@pytest.mark.parametrize("stage", ["train_lm", "harvest", "train_sae"])
def test_keys_that_do_not_change_a_result_are_in_no_record(stage):
    config = composed(stage, tuple(overrides(stage, Path("study"))))
    kept = record(config)
    assert "training" not in kept or not {"log_every", "checkpoint_every"} & kept["training"].keys()
    assert (
        kept.keys()
        == {
            "train_lm": {"seed", "data", "tokenizer", "model", "optimizer", "training"},
            "harvest": {"seed", "data", "harvest"},
            "train_sae": {"seed", "activations", "sae", "optimizer", "training"},
        }[stage]
    )
    elsewhere = replace(config, name="other", device="auto", study_dir="there")
    assert record(elsewhere) == kept
    assert record(replace(config, seed=1)) != kept


def test_every_key_of_tracking_is_neutral():
    assert {f"tracking.{field.name}" for field in fields(TrackingConfig)} < {*NEUTRAL}


@dataclass
class Section:
    size: int
    younger: int = 5


@dataclass
class Whole:
    section: Section
    seed: int = 0


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"size": 1, "younger": 5}, Section(1), []),
        ({"size": 1}, Section(1), []),  # recorded before the key was there: at its default
        ({"size": 1}, Section(1, 6), ["section.younger is 5 there, 6 now"]),
        ({"size": 1, "gone": 3}, Section(1), []),  # a key of an earlier version
        ({}, Section(1), ["section.size is None there, 1 now"]),  # it has no default
        ({"size": 2, "younger": 4}, Section(1), [
            "section.size is 2 there, 1 now", "section.younger is 4 there, 5 now",
        ]),
    ],
)  # fmt: skip
def test_records_of_other_versions_differ_only_by_what_both_mean(old, new, found):
    whole = Whole(new)
    assert differences(
        {"section": old, "seed": 0}, vars(whole) | {"section": vars(new)}, whole
    ) == (found)


def test_another_kind_of_section_is_another_record():
    muon = MuonConfig(**vars(ADAMW), hidden_lr=2e-2, momentum=0.95)
    assert differences(vars(muon), vars(ADAMW), ADAMW)  # though AdamW has no key that Muon lacks
    assert differences(vars(ADAMW), vars(muon), muon)


def test_a_value_left_out_because_it_was_at_its_default_is_compared():
    harvest = HarvestConfig(1, "mlp_post", 600, "all", 4, 200, "float32")
    now = {key: value for key, value in vars(harvest).items() if key != "skip_first"}
    assert differences({**now, "skip_first": 1}, now, harvest) == ["skip_first is 1 there, 0 now"]


def test_without_a_schema_every_key_counts():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"d": 2}}) == [
        "b.d is None there, 2 now", "b.c is 2 there, None now", "a is 1 there, None now",
    ]  # fmt: skip
