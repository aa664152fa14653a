"""``ganprune lottery``: tickets round by round, their controls, and what each of them is worth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import ganprune as gp
from ganprune.cli.arguments import UsageError, check_request, request_of, train_config
from ganprune.cli.networks import load_data, load_gan, loss_of, new_gan
from ganprune.cli.output import losses, measure, plain, say
from ganprune.cli.pruning import scoring
from ganprune.core.files import replacing
from ganprune.lottery.controls import draw_random_ticket, reinitialise_ticket, shuffle_ticket
from ganprune.lottery.iterative import find_tickets
from ganprune.lottery.tickets import Ticket
from ganprune.scores.registry import SCORES

CONTROLS: dict[str, Callable[[Ticket, int], Ticket]] = {
    "reinitialised": reinitialise_ticket,
    "shuffled": shuffle_ticket,
    "random": draw_random_ticket,
}
NETWORKS = {"generator": ("generator",), "discriminator": ("discriminator",)} | {
    "both": ("generator", "discriminator")
}
GROWS = ("rounds", "arm")
"""Options that a resumed run may change."""


def run_lottery(options: argparse.Namespace) -> dict[str, Any]:
    """Finds tickets and trains their controls; what is finished in the folder is not done again."""
    begun = _has_begun(options)
    if options.checkpoint is None and options.generator is None:
        data = load_data(options, "mnist")
        gan = new_gan(options, data.image_shape)
    else:
        gan = load_gan(options)
        data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    loss = loss_of(options, gan)
    config = train_config(options, loss)
    gan.metadata = {"data": data.name, "request": request_of(options), "config": {"loss": loss}}
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
        callbacks=_progress(config),
        folder=options.out,
        checkpoint_every=options.checkpoint_every,
    )
    if not begun:
        with replacing(_request_file(options)) as temporary:
            temporary.write_text(json.dumps(request_of(options), indent=1) + "\n", encoding="utf-8")
    rows = []
    for one in found:
        say(f"round {one.number} of {options.rounds}: sparsity {one.ticket.sparsity:.4f}")
        rows.append(_row(options, one.number, "ticket", one.ticket, one.state, data))
        for arm in options.arm if one.number else ():
            control, state = _control(options, one.number, arm, one.ticket, data)
            rows.append(_row(options, one.number, arm, control, state, data))
    row = {"command": "lottery", **gan.metadata["request"], "loss": loss, "data": data.name}
    return row | {"samples": options.samples, "split": options.split, "rows": rows, "out": str(options.out)}


def _request_file(options: argparse.Namespace) -> Path:
    return options.out / "request.json"


def _has_begun(options: argparse.Namespace) -> bool:
    """Whether the folder holds a run that is to go on, begun with the same options.

    Raises:
        UsageError: if the folder cannot be used, or holds another run than the one that is to go on.
    """
    where = f"ganprune lottery: error: argument --{'resume' if options.resume else 'out'}:"
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{where} must be a folder, got the file '{options.out}'")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{where} cannot write '{options.out}': {error.strerror or error}") from error
    if not _request_file(options).is_file():
        if options.resume:
            say("there is no unfinished run to resume; starting from the beginning")
        return False
    if not options.resume:
        raise UsageError(f"{where} {options.out} holds a run; add --resume to go on, or name another folder")
    begun = json.loads(_request_file(options).read_text(encoding="utf-8"))
    check_request(options, begun, f"the run in {options.out}", leave_out=GROWS)
    return True


def _score(
    options: argparse.Namespace, data: gp.data.ImageData
) -> str | Callable[[gp.TrainState, str], Mapping[str, Tensor]]:
    """The score's name, or a function that gives it the losses and inputs that it needs."""
    if not {"loss_fn", "inputs"} & SCORES[options.score].parameters.keys():
        return options.score

    def scores(state: gp.TrainState, network: str) -> Mapping[str, Tensor]:
        given = scoring(options, state.gan, state.config.loss, network, data.train)
        model = state.gan.networks()[network]
        return gp.score(model, options.score, protect=options.protect, seed=options.seed, **given)

    return scores


def _progress(config: gp.TrainConfig) -> list[gp.every]:
    return [] if sys.stderr.isatty() else [losses(config.steps)]


def _control(
    options: argparse.Namespace, number: int, arm: str, ticket: Ticket, data: gp.data.ImageData
) -> tuple[Ticket, gp.TrainState]:
    """A control of a round's ticket, trained as long: as it was kept, from where it was stopped, or from its start."""
    control = CONTROLS[arm](ticket, gp.step_seed(options.seed, number, arm))
    done, running = (options.out / f"{arm}-{number:02}{end}.safetensors" for end in ("", ".partial"))
    if done.is_file():
        return control, gp.TrainState.load(done, options.device)
    state = gp.TrainState.load(running, options.device) if running.is_file() else control.start()
    say(f"round {number}, {arm}: training steps {state.step + 1} to {state.config.steps}")
    callbacks = [gp.every(options.checkpoint_every, gp.Checkpoint(running), at_end=False)]
    gp.train(state, data.train, [*callbacks, *_progress(state.config)])
    state.save(done)
    running.unlink(missing_ok=True)
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
