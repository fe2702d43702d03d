"""What is counted on fake tensors is what real ones do, in computation and in memory; what follows for many GPUs."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.counting import Meter, count, on_meta, r1_interval, take_steps
from benchmarks.workload import RandomBatches, build, merged, random_parts, without_downloads

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
ANIMATOR = CONFIGS / "animator_quick.yaml"
SMALL = ["--data.init_args.batch_size=1"]


def test_meter_counts_what_torchs_own_counts_and_forgets_what_is_gone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    picture = torch.rand(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        network(picture).sum().backward()
    with Meter() as ours:
        network(picture).sum().backward()
        now = ours.now
        kept = torch.zeros(1000)
        assert ours.now == now + 4000
        del kept
        assert ours.now == now
    assert ours.flops == theirs.get_total_flops() > 0
    with Meter() as inference, torch.inference_mode():
        network(picture)
    assert 0 < inference.flops < ours.flops
    assert ours.peak >= now + 4000


@pytest.mark.parametrize("config", [QUICKSTART, ANIMATOR], ids=["motion", "animator"])
def test_fake_step_counts_what_a_real_one_does(config: Path) -> None:
    fake = count([config], SMALL)
    meter = Meter()
    with meter:
        cli = build([config], [*without_downloads([config]), *SMALL])
        random_parts(cli.model, perceptual=False)
    held = list(getattr(cli.model, "_frozen", []) or [])
    others = [network for network in held if isinstance(network, nn.Module)]
    precision = str(merged([config])["trainer"].get("precision", "32-true"))
    real = take_steps(cli.model, others, RandomBatches(cli.datamodule), precision, meter, r1_interval([config]))
    assert real.flops == fake.flops > 1e9
    for name in ("trained", "parameters", "gradients", "optimiser", "average"):
        assert getattr(real, name) == getattr(fake, name), name
    assert real.activations == pytest.approx(fake.activations, rel=0.02)
    assert real.peak == pytest.approx(fake.peak, rel=0.05)


def test_checkpointing_computes_more_and_holds_less() -> None:
    option = "--model.init_args.optimisation.gradient_checkpointing"
    plain, again = (count([ANIMATOR], [*SMALL, f"{option}={value}"]) for value in ("false", "true"))
    assert 1.1 * plain.flops < again.flops < 1.5 * plain.flops
    assert again.activations < 0.7 * plain.activations


def test_nothing_is_computed_or_held_on_the_meta_device() -> None:
    cli, others = on_meta([ANIMATOR])
    assert all(parameter.is_meta for parameter in cli.model.parameters())
    assert all(parameter.is_meta for other in others for parameter in other.parameters())


# ---- many GPUs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart() -> scaling.Training:
    return scaling.training(QUICKSTART)


def test_units_hold_every_weight_once(quickstart: scaling.Training) -> None:
    cli, _ = on_meta([QUICKSTART])
    sharded = sum(shape.numel() for unit in quickstart.units for shape in (*unit.trained, *unit.frozen))
    assert len(quickstart.units) > 10
    assert sharded + quickstart.whole == sum(parameter.numel() for parameter in cli.model.parameters())
    trained = sum(shape.numel() for unit in quickstart.units for shape in unit.trained)
    assert trained + quickstart.whole == quickstart.work.trained


def test_sharding_divides_what_stays_and_rounds_up(quickstart: scaling.Training) -> None:
    assert scaling.part([torch.Size([320, 10])], 8) == 400
    assert scaling.part([torch.Size([3, 10]), torch.Size([])], 2) == 21
    assert scaling.part([torch.Size([3, 10])], 512) == 10  # a rank has a row or none
    whole, two = scaling.memory(quickstart, None), scaling.memory(quickstart, 2)
    assert two["Adam"] == pytest.approx(whole["Adam"] / 2, rel=0.1)
    assert two["EMA"] == pytest.approx(whole["EMA"] / 2, rel=0.1)
    assert two["activations"] == whole["activations"]
    for row in (whole, two):
        assert row["total"] == pytest.approx(sum(value for name, value in row.items() if name != "total"))


def test_hybrid_sharding_sends_little_between_nodes(quickstart: scaling.Training) -> None:
    machine = scaling.Machine()
    sent = {name: scaling.communication(quickstart, 64, machine, name) for name in ("DDP", "FSDP", "hybrid")}
    assert sent["hybrid"]["between"] < 0.3 * sent["DDP"]["between"] < sent["FSDP"]["between"]
    assert sent["DDP"]["within"] == sent["FSDP"]["within"] == 0
    # All-reduce over a ring: twice what one rank holds, but for its own part
    alone = scaling.communication(quickstart, 8, machine, "DDP")
    assert alone["within"] * 1e9 == pytest.approx(2 * 4 * quickstart.work.trained * 7 / 8)


def test_tables_go_between_the_marks_of_a_document() -> None:
    document = f"before\n{scaling.BEGIN}\nold\n{scaling.END}\nafter\n"
    assert scaling.placed(document, "new") == f"before\n{scaling.BEGIN}\n\nnew\n\n{scaling.END}\nafter\n"
    with pytest.raises(ValueError, match="no place for the tables"):
        scaling.placed("nothing", "new")


def test_report_has_a_row_for_each_case(quickstart: scaling.Training) -> None:
    text = scaling.report([quickstart], [8, 64], scaling.Machine())
    communication = text.partition("### Communication")[2].partition("###")[0]
    assert [line.split("|")[2:4] for line in communication.splitlines() if "quickstart" in line] == [
        [" 8 ", " DDP "], [" 8 ", " FSDP "], [" 64 ", " DDP "], [" 64 ", " FSDP "], [" 64 ", " hybrid "],
    ]  # fmt: skip
