"""Iterative pruning: exact counts, nested masks, rewinding bit for bit."""

import copy
import itertools
import json

import pytest
import torch
from tools.small_gans import Ring, weights
from tools.tickets import (
    BOTH,
    Noise,
    config,
    differing,
    everything,
    images,
    moments,
    own_gan,
    plane,
    search,
    train,
)
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.lottery import (
    REWINDINGS,
    find_tickets,
    reinitialise_ticket,
)
from ganprune.lottery.tickets import copy_gan
from ganprune.masks.mask import MaskError, pruned_count
from ganprune.masks.weights import weight_slots


@pytest.mark.parametrize("rewind", REWINDINGS)
@pytest.mark.parametrize("networks", [("generator",), ("discriminator",), BOTH])
def test_each_round_prunes_exactly_and_within_the_last(rewind, networks):
    gan = plane()
    before = weights(gan)
    options = {"rewind": rewind, "rewind_step": 2 if rewind == "late" else None, "networks": networks}
    found = search(gan, Ring(), config(), 3, keep=0.7, **options)
    assert differing(before, weights(gan)) == [] and not gan.masks
    assert [one.number for one in found] == [0, 1, 2, 3]
    for number, one in enumerate(found):
        assert set(one.ticket.masks) == set(networks) and one.ticket.arm == "ticket"
        for name, mask in one.ticket.masks.items():
            assert mask.pruned == pruned_count(1 - 0.7**number, mask.total)
            gp.check_mask(one.state.gan.networks()[name], mask)
            if number:
                assert found[number - 1].ticket.masks[name].covers(mask)
                assert one.state.masks[name] == mask
        if "generator" in networks:
            gp.check_mask(one.state.gan.generator_ema, one.ticket.masks["generator"])
        assert set(one.state.masks) == (set(networks) if number else set())
        assert one.state.step == 6 and one.row["step"] == 6
        assert one.row["round"] == number and one.row["sparsity"] == one.ticket.sparsity
        assert one.row["kept"] == sum(mask.kept for mask in one.ticket.masks.values())
        assert all(one.row[f"{name}_sparsity"] == one.ticket.masks[name].sparsity for name in networks)
        assert one.row["generator_loss"] == one.state.history[-1]["generator_loss"]
        json.dumps(one.row)


def test_a_round_prunes_the_smallest_of_what_the_last_round_trained():
    found = search(plane(), Ring(), config(), 2, keep=0.6)
    for earlier, later in itertools.pairwise(found):
        slots = weight_slots(earlier.state.gan.generator)
        flat = torch.cat([slots[key].raw.detach().abs().flatten() for key in later.ticket.masks["generator"]])
        kept = torch.cat([mask.flatten() for mask in later.ticket.masks["generator"].values()])
        alive = torch.cat([mask.flatten() for mask in earlier.ticket.masks["generator"].values()])
        assert flat[kept].min() >= flat[alive & ~kept].max()


@pytest.mark.parametrize("network", ["mlp", "dcgan"])
@pytest.mark.parametrize("step", [0, 2])
def test_rewinding_restores_the_state_bit_for_bit(network, step):
    """Against states stopped by hand: everything is as it was, but for what is pruned."""
    gan, split = (plane(norm="none"), Ring()) if network == "mlp" else (images("batch"), Noise(1, 28, 28))
    settings, seen = config(log_every=3), {}

    def keep(state):
        if state.step == step:
            seen["then"] = copy.deepcopy(everything(state))

    twin = gp.TrainState(copy.deepcopy(gan), settings)
    keep(twin)
    train(twin, split, [keep])
    options = {"rewind": "late", "rewind_step": step} if step else {"rewind": "init"}
    one = search(gan, split, settings, 1, keep=0.5, networks=BOTH, **options)[1]
    state, then = one.ticket.start(), seen["then"]
    now = everything(state)
    slots = {name: weight_slots(state.gan.networks()[name]) for name in BOTH}
    masked = set()
    for name, mask in one.ticket.masks.items():
        for key, kept in mask.items():
            index = [id(p) for p in state.gan.networks()[name].parameters()].index(id(slots[name][key].raw))
            entries = [f"{name}/{key}", f"{name}/{index}/exp_avg", f"{name}/{index}/exp_avg_sq"]
            entries += ["generator_ema/" + key] if name == "generator" else []
            for entry in entries if step else [e for e in entries if "exp_avg" not in e]:
                assert torch.equal(now[entry], torch.where(kept, then[entry], 0.0)), entry
                assert not now[entry][~kept].signbit().any()
                masked.add(entry)
    assert len(masked) > 5
    for key, value in then.items():
        assert key in masked or torch.equal(now[key], value), key
    assert state.step == step and one.row["start_step"] == step


def test_the_power_iteration_belongs_to_the_masked_weights():
    one = search(plane(), Ring(), config(), 2, keep=0.4, networks="discriminator")[2]
    for slot in weight_slots(one.ticket.start().gan.discriminator).values():
        assert torch.linalg.matrix_norm(slot.effective(), 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("step", [0, 1, 3, 5])
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_a_dense_ticket_goes_on_as_if_nothing_had_happened(network, step):
    """Train to k, rewind there, train on: the data are replayed, and the run is the uninterrupted one."""
    gan, split = (plane(), Ring()) if network == "mlp" else (images(), Noise(1, 28, 28))
    straight = train(gp.TrainState(copy.deepcopy(gan), config()), split)
    options = {"rewind": "late", "rewind_step": step} if step else {}
    found = search(gan, split, config(), 1, **options, networks=BOTH)
    dense = found[0].ticket
    assert (dense.step, dense.sparsity) == (step, 0.0)
    assert differing(everything(straight), everything(train(dense.start(), split))) == []
    assert differing(everything(straight), everything(found[0].state)) == []


def test_what_callbacks_keep_in_the_state_is_rewound_too(tmp_path):
    """A running sum of the weights: it must go on from what it was at the rewound step, as the weights do."""

    def gather(state):
        total = sum(p.detach().double().sum() for p in state.gan.generator.parameters())
        state.extras["sum"] = state.extras.get("sum", torch.zeros((), dtype=torch.float64)) + total

    options = {"rewind": "late", "rewind_step": 2, "callbacks": [gather]}
    straight = train(gp.TrainState(plane(), config()), Ring(), [gather])
    found = search(plane(), Ring(), config(), 1, folder=tmp_path, **options)
    then = found[0].ticket.rewound.extras["sum"]
    for one in search(plane(), Ring(), config(), 1, folder=tmp_path, **options):  # loaded from the folder
        assert torch.equal(one.ticket.start().extras["sum"], then)
        again = train(one.ticket.start(), Ring(), [gather])
        assert torch.equal(again.extras["sum"], one.state.extras["sum"])
        assert torch.equal(one.ticket.rewound.extras["sum"], then)
    assert torch.equal(found[0].state.extras["sum"], straight.extras["sum"])
    assert not reinitialise_ticket(found[1].ticket, 0).start().extras


def test_a_ticket_trains_to_what_its_round_gave_and_stays_as_it_is():
    found = search(plane(), Ring(), config(), 2, rewind="late", rewind_step=2, networks=BOTH)
    for _ in range(2):
        assert differing(everything(found[2].state), everything(train(found[2].ticket.start(), Ring()))) == []


def test_what_the_caller_does_to_a_trained_state_changes_no_later_round():
    plain = search(plane(), Ring(), config(), 2, rewind="learning-rate")
    rounds = []
    for one in find_tickets(plane(), Ring(), config(), 2, rewind="learning-rate", show_progress=False):
        rounds.append(everything(one.state))
        with torch.no_grad():
            for parameter in one.state.gan.generator.parameters():
                parameter.fill_(1.0)
    assert all(differing(everything(a.state), b) == [] for a, b in zip(plain, rounds, strict=True))


@pytest.mark.parametrize("step", [None, 2])
def test_learning_rate_rewinding_keeps_the_weights_and_replays_the_schedule(step):
    rates, settings = [], config(decay_from=0.5, learning_rate=0.01)

    def note(state):
        rates.append((state.step, [o.param_groups[0]["lr"] for o in state.optimizers.values()]))

    gan = plane(norm="none")
    options = {"rewind": "learning-rate", "rewind_step": step, "networks": BOTH}
    found = search(gan, Ring(), settings, 2, keep=0.5, callbacks=[note], **options)
    begin = step or 0
    expected = [0.01 * settings.learning_rate_factor(at) for at in range(6)]
    steps = [*range(6), *range(begin, 6), *range(begin, 6)]
    assert [at for at, _ in rates] == [at + 1 for at in steps]
    assert [pair for _, pair in rates] == [[expected[at]] * 2 for at in steps]
    for earlier, later in itertools.pairwise(found):
        trained, start = everything(earlier.state), later.ticket.start()
        assert start.step == begin and not start.history and not later.ticket.rewound.gan.masks
        now, masks = everything(start), later.ticket.masks
        for name in BOTH:
            for key, kept in masks[name].items():
                assert torch.equal(now[f"{name}/{key}"], torch.where(kept, trained[f"{name}/{key}"], 0.0))
            for key, entries in moments(start, name).items():
                before = moments(earlier.state, name)[key]
                for entry, was in zip(entries, before, strict=True):
                    assert torch.equal(entry, torch.where(masks[name][key], was, 0.0))
        assert torch.equal(now["generator/layers.output.bias"], trained["generator/layers.output.bias"])


def test_rewinding_the_learning_rate_needs_one_that_decays():
    with pytest.raises(ValueError, match=r"config.decay_from must be below 1 for rewind='learning-rate'"):
        find_tickets(plane(), Ring(), config(decay_from=1.0), 2, rewind="learning-rate")


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, spectral_norm], ids=["hook", "parametrized"])
@pytest.mark.parametrize("rewind", REWINDINGS)
def test_tickets_of_networks_without_a_spec(norm, rewind):
    gan = own_gan(norm=norm)
    train(gp.TrainState(gan, config(steps=2)), Ring())
    gan.discriminator(torch.ones(3, 2))  # the older hook leaves a weight that hangs on its graph
    step = 4 if rewind == "late" else None
    options = {"rewind": rewind, "rewind_step": step, "networks": BOTH, "protect": {"generator": ["last"]}}
    one = search(gan, Ring(), config(), 2, keep=0.5, **options)[2]
    assert list(one.ticket.masks["generator"]) == ["first.weight", "inner.weight"]
    assert one.ticket.masks["generator"].sparsity == pytest.approx(0.75, abs=0.01)
    assert torch.equal(one.state.gan.generator.fixed.weight, gan.generator.fixed.weight)
    assert differing(everything(one.state), everything(train(one.ticket.start(), Ring()))) == []
    if rewind == "late":
        straight = train(gp.TrainState(copy_gan(gan), config()), Ring())
        dense = search(gan, Ring(), config(), 1, **options)[0].ticket
        assert differing(everything(straight), everything(train(dense.start(), Ring()))) == []


def test_a_score_of_ones_own_sees_the_trained_state():
    seen = []

    def of_the_average(state, network):
        seen.append((state.step, network, state.masks.get(network)))
        return gp.score(state.gan.generator_ema, "magnitude")

    found = search(plane(), Ring(), config(), 2, score=of_the_average, protect="layers.output")
    assert [(step, network) for step, network, _ in seen] == [(6, "generator")] * 2
    assert seen[0][2] is None and seen[1][2] == found[1].ticket.masks["generator"]
    ema = found[0].state.gan.generator_ema
    expected = gp.allocate(gp.score(ema, "magnitude", protect=["layers.output"]), 1 - 0.8)
    assert found[1].ticket.masks["generator"] == expected
    with pytest.raises(
        ValueError, match="score must give every prunable weight a number; it left out layers.lin"
    ):
        search(plane(), Ring(), config(), 1, score=lambda state, network: {})


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp", "per-output"])
def test_other_allocations_are_exact_and_nested_too(allocation):
    found = search(plane(), Ring(), config(), 2, keep=0.6, allocation=allocation, score="random")
    for earlier, later in itertools.pairwise(found):
        mask = later.ticket.masks["generator"]
        assert mask.pruned == pruned_count(1 - 0.6**later.number, mask.total)
        assert earlier.ticket.masks["generator"].covers(mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"rounds": 1.5}, "rounds must be an integer of at least 1, got 1.5"),
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1, got 0"),
        ({"keep": 1.0}, r"keep must be in \(0, 1\), got 1.0"),
        ({"keep": float("nan")}, r"keep must be in \(0, 1\), got nan"),
        ({"rewind": "early"}, "rewind must be one of init, late, learning-rate, got 'early'"),
        ({"rewind": "late"}, r"rewind_step must be in \[1, 5\] for rewind='late', got None"),
        ({"rewind": "late", "rewind_step": 6}, r"rewind_step must be in \[1, 5\] for rewind='late', got 6"),
        ({"rewind": "late", "rewind_step": 0}, r"rewind_step must be in \[1, 5\] for rewind='late', got 0"),
        ({"rewind_step": 2}, r"rewind_step must be in \[0, 0\] for rewind='init', got 2"),
        ({"networks": ()}, "networks must name one or both of generator, discriminator, got"),
        ({"networks": ("generator", "generator")}, "networks must name one or both of"),
        ({"networks": "critic"}, "network must be one of generator, discriminator, got 'critic'"),
        ({"score": "snip"}, "score 'snip' needs loss_fn, which change as training goes on"),
        ({"score": "wanda"}, "score 'wanda' needs inputs, which change as training goes on"),
        ({"score": "weight"}, "score must be one of"),
        (
            {"allocation": "2:4"},
            "allocation must be one of global, uniform, erk, lamp, per-output, got '2:4'",
        ),
        ({"protect": ["layers.conv9"]}, "protect names layers.conv9, which is no prunable layer"),
        ({"protect": {"discriminator": []}}, "protect must be keyed by generator, got discriminator"),
    ],
)
def test_bad_arguments_are_refused_at_once(changes, message):
    arguments = {"rounds": 1, **changes}
    with pytest.raises(ValueError, match=message):
        find_tickets(plane(), Ring(), config(), **arguments)


def test_a_score_must_be_a_name_or_a_function_and_the_gan_dense():
    with pytest.raises(TypeError, match=r"score must be a name or a function of \(state, network\), got 3"):
        find_tickets(plane(), Ring(), config(), 1, score=3)
    for keep in ("0.8", True):
        with pytest.raises(TypeError, match=r"keep must be a number in \(0, 1\), got"):
            find_tickets(plane(), Ring(), config(), 1, keep=keep)
    pruned = plane()
    gp.prune(pruned, 0.5, which="discriminator")
    forgotten = plane()
    gp.prune(forgotten.discriminator, 0.5)
    for begin in (lambda gan: find_tickets(gan, Ring(), config(), 1),):
        with pytest.raises(ValueError, match="gan must be dense, got one with masks of discriminator"):
            begin(pruned)
        with pytest.raises(MaskError, match="of the discriminator's weights are zero"):
            begin(forgotten)
