"""``ganprune lottery``: tickets round by round, their controls, and what each of them is worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import ganprune as gp
from ganprune.cli import options as shared
from ganprune.cli.networks import load_data, load_gan, loss_inputs, loss_of, new_gan
from ganprune.cli.options import train_config, wrong
from ganprune.cli.output import measure, plain, prepare_extractor, say
from ganprune.cli.runs import (
    Interrupted,
    check_same_request,
    check_writable,
    progress_callbacks,
    request_of,
    shown_request,
)
from ganprune.cli.tracking import add_tracker, tracking
from ganprune.core.files import owned, replacing
from ganprune.lottery.controls import CONTROLS
from ganprune.lottery.iterative import REWINDINGS, find_tickets
from ganprune.lottery.tickets import Ticket
from ganprune.networks.gan import MASKED_NETWORKS
from ganprune.scores.registry import SCORES, get_score

NETWORKS = {name: (name,) for name in MASKED_NETWORKS} | {"both": MASKED_NETWORKS}
REQUEST = "request.json"
"""The file in the folder of a run that holds its options."""
GROWS = ("rounds", "arm")
"""Options that a resumed run may change."""
EXAMPLES = """examples:
  ganprune lottery --rounds 5 --steps 12000 --out tickets
  ganprune lottery --rounds 5 --steps 12000 --out tickets --resume     after a stop: goes on where it was
  ganprune lottery --rewind late --rewind-step 500 --arm reinitialised --arm shuffled --out late --json
  ganprune evaluate --checkpoint tickets/trained-05.safetensors"""


def _ticket_score(text: str) -> str:
    if text == "movement":
        raise argparse.ArgumentTypeError(
            f"must be a score of the trained network, which a ticket needs; {text} is gathered while training"
        )
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where tickets, states and rows are kept")
    add("--resume", action="store_true", help="go on with the run in --out; --rounds and --arm may be more")
    add(
        "--checkpoint",
        metavar="FILE|NAME",
        help="the dense GAN to start from (default: a freshly initialised one)",
    )
    shared.add_new_network(parser)
    _add_rounds(parser)
    shared.add_method(parser)
    add(
        "--arm",
        action="append",
        default=[],
        choices=tuple(CONTROLS),
        help="a control to train beside the ticket: its mask on fresh weights, its mask shuffled within layers, or a "
        "random mask of its sparsity; may be given several times",
    )
    add(
        "--steps",
        type=shared.COUNT,
        default=12_000,
        help="generator updates of each training (default: 12000)",
    )
    shared.add_loss(parser, None, f"the checkpoint's, else {shared.DEFAULT.loss}")
    shared.add_updates(parser)
    shared.add_critic(parser)
    add(
        "--checkpoint-every",
        type=shared.COUNT,
        default=500,
        metavar="N",
        help="steps between two saves of a training that may be cut short (default: 500)",
    )
    shared.add_evaluation(parser)
    add_tracker(parser)
    shared.add_own_networks(parser)
    shared.add_common(parser, "what the checkpoint was trained on, else mnist")


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--rounds",
        type=shared.COUNT,
        default=5,
        help="rounds of pruning, after the dense training (default: 5)",
    )
    add(
        "--keep",
        type=shared.BETWEEN,
        default=0.8,
        help="the share of the weights that a round keeps (default: 0.8)",
    )
    add(
        "--rewind",
        choices=REWINDINGS,
        default="init",
        help="go back to the initialisation (init), to an early step (late), or in the learning rate alone "
        "(learning-rate) (default: init)",
    )
    add(
        "--rewind-step",
        type=shared.COUNT_OR_NONE,
        metavar="STEP",
        help="the step that late rewinding goes back to",
    )
    add(
        "--networks",
        choices=tuple(NETWORKS),
        default="generator",
        help="which networks are pruned (default: generator)",
    )
    add(
        "--score",
        type=_ticket_score,
        choices=sorted(SCORES),
        default="magnitude",
        help="what the weights are ranked by (default: magnitude)",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Finds tickets and trains their controls; what is finished in the folder is not done again."""
    options.arm = [arm for arm in CONTROLS if arm in options.arm]
    lost = [arm for arm in options.arm if arm in ("shuffled", "random")]
    if lost and options.rewind == "learning-rate":
        problem = f"{lost[0]} not with --rewind learning-rate, which has lost the pruned weights"
        raise wrong("lottery", "--arm", problem)
    _check_folder(options)
    if options.checkpoint is None and options.generator is None:
        data = load_data(options, "mnist")
        gan = new_gan(options, data.image_shape)
    else:
        gan = load_gan(options)
        data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    loss = loss_of(options, gan)
    gan.metadata = {"data": data.name, "request": request_of(options), "config": {"loss": loss}}
    try:
        rows = _find_and_control(options, gan, data, loss)
    except KeyboardInterrupt as stop:
        kept = f"{options.out} holds the run so far; the same command with --resume goes on from there"
        raise Interrupted(kept) from stop
    row = {"command": "lottery", **shown_request(request_of(options)), "loss": loss, "data": data.name}
    return row | {"samples": options.samples, "split": options.split, "rows": rows, "out": str(options.out)}


def _find_and_control(
    options: argparse.Namespace, gan: gp.GAN, data: gp.data.ImageData, loss: str
) -> list[dict[str, Any]]:
    """The rows of all rounds and controls."""
    config = train_config(options, loss)
    trainings = 1 + options.rounds * (1 + len(options.arm))
    report = progress_callbacks(config.steps, trainings)
    found = find_tickets(
        gan,
        data.train,
        config,
        options.rounds,
        keep=options.keep,
        rewind=options.rewind,
        rewind_step=options.rewind_step,
        networks=NETWORKS[options.networks],
        score=_score(options, data),
        allocation=options.allocation or SCORES[options.score].allocation,
        protect=options.protect,
        callbacks=[*report, *tracking(options, config.steps, partial(_name_of, options, "ticket"))],
        folder=options.out,
        checkpoint_every=options.checkpoint_every,
    )
    _remember(options)
    prepare_extractor(options, data)
    say(f"{trainings} trainings of {config.steps:,} steps, {trainings * config.steps:,} steps in all at most")
    rows = []
    for one in found:
        say(f"round {one.number} of {options.rounds}: sparsity {one.ticket.sparsity:.4f}")
        rows.append(_row(options, one.number, "ticket", one.ticket, one.state, data))
        for arm in options.arm if one.number else ():
            control, state = _control(options, one.number, arm, one.ticket, data, report)
            rows.append(_row(options, one.number, arm, control, state, data))
    return rows


def _name_of(options: argparse.Namespace, arm: str, state: gp.TrainState) -> str:
    """What a training is called in a tracker: the folder, the arm, and how sparse it is."""
    sparsity = max((mask.sparsity for mask in state.masks.values()), default=0.0)
    return f"{options.out.name} {arm} {sparsity:.3f}"


def _check_folder(options: argparse.Namespace) -> None:
    """Does nothing if the folder can be used, and holds no other run than the one that is to go on.

    Raises:
        UsageError: if it cannot be used, or holds another run.
        OutputInUseError: if another process is at work there.
    """
    out, request = options.out, options.out / REQUEST
    if out.exists() and not out.is_dir():
        raise wrong("lottery", "--out", f"must be a folder, got the file '{out}'")
    check_writable("lottery", request)
    with owned(out):
        if not request.is_file():
            if options.resume:
                say("there is no unfinished run to resume; starting from the beginning")
            return
        if not options.resume:
            raise wrong(
                "lottery", "--out", f"{out} holds a run; add --resume to go on, or name another folder"
            )
        try:
            begun = json.loads(request.read_text(encoding="utf-8"))
        except ValueError as error:
            problem = f"{request} is damaged; name another folder"
            raise wrong("lottery", "--resume", problem) from error
        wanted = {key: value for key, value in request_of(options).items() if key not in GROWS}
        begun = {key: value for key, value in begun.items() if key not in GROWS}
        check_same_request("lottery", begun, wanted, f"the run in {out}")


def _remember(options: argparse.Namespace) -> None:
    """Keeps the options in the folder, for whoever goes on there."""
    request = options.out / REQUEST
    if not request.is_file():
        with owned(options.out), replacing(request) as temporary:
            temporary.write_text(json.dumps(request_of(options), indent=1) + "\n", encoding="utf-8")


def _score(
    options: argparse.Namespace, data: gp.data.ImageData
) -> str | Callable[[gp.TrainState, str], Mapping[str, Tensor]]:
    """The score's name, or a function that gives it the losses and inputs that it needs."""
    chosen = get_score(options.score)
    if not {"loss_fn", "inputs"} & (chosen.needs | chosen.optional):
        return options.score

    def scores(state: gp.TrainState, network: str) -> Mapping[str, Tensor]:
        given = loss_inputs(options, state.gan, state.config.loss, network, data.train)
        scored = state.gan.networks()[network]
        return gp.score(scored, options.score, protect=options.protect, seed=options.seed, **given)

    return scores


def _control(
    options: argparse.Namespace,
    number: int,
    arm: str,
    ticket: Ticket,
    data: gp.data.ImageData,
    report: list[Callable[[gp.TrainState], Any]],
) -> tuple[Ticket, gp.TrainState]:
    """A control of a round's ticket, trained as long: as it was kept, from where it was stopped, or from its start."""
    control = CONTROLS[arm](ticket, gp.step_seed(options.seed, number, arm))
    path = options.out / f"{arm}-{number:02}.safetensors"
    state = gp.TrainState.resume(path, control.start, options.device)
    if state.step < state.config.steps:
        say(f"round {number}, {arm}: training steps {state.step + 1} to {state.config.steps}")
        callbacks: list[Callable[[gp.TrainState], Any]] = [
            gp.every(options.checkpoint_every, gp.training.Checkpoint(path)),
            *report,
        ]
        callbacks += tracking(options, state.config.steps, partial(_name_of, options, arm))
        gp.train(state, data.train, callbacks)
    return control, state


def _row(
    options: argparse.Namespace,
    number: int,
    arm: str,
    ticket: Ticket,
    state: gp.TrainState,
    data: gp.data.ImageData,
) -> dict[str, Any]:
    """The row of one trained ticket or control; kept in the folder, as an evaluation takes long."""
    key = {"round": number, "arm": arm, "samples": options.samples, "split": options.split}
    store = options.out / "rows.jsonl"
    for row in gp.records.read(store):
        if all(row.get(name) == value for name, value in key.items()):
            return row
    row = {**key, "ticket_sparsity": ticket.sparsity, "kept": ticket.kept, "start_step": ticket.step}
    row |= {f"{name}_sparsity": mask.sparsity for name, mask in ticket.masks.items()}
    row |= state.history[-1]
    row |= measure(options, state.gan, data, state.config.loss, "generator_ema") | key
    row = plain(row | gp.records.provenance())
    gp.records.append(store, row)
    return row
