"""What a client's round tells its server: every attack under every defence, as lines of a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from experiments.leakage import membership_attack as membership
from experiments.leakage.crafted_gate import bound_experts, bound_units
from experiments.leakage.defences import central_release, leaving, refusal
from experiments.leakage.membership_attack import Answer, Game, Seen
from experiments.leakage.merit import Merit
from experiments.leakage.reconstruction import (
    Reader,
    Search,
    Template,
    answered,
    bag,
    guessed,
)
from experiments.leakage.victim import Victim
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.data import Tokenised
from mops_fl.generation.quality import rouge_l
from mops_fl.node.node_config import Policy
from mops_fl.seeding import numpy_generator
from mops_fl.wire.records import Tensors, difference, norm

RIDGE = 1e-5
_DRAWS = 5
_CLIP = 1.0
"""C of every defence that clips: about the norm of a round of 20 steps."""


@dataclass(frozen=True)
class Sizes:
    """Of a study."""

    longest: int = 64
    """Tokens of a row, at most."""
    public: int = 500
    """Rows that the attacker has."""
    held: int = 20
    """Rows of a client."""
    clients: int = 4
    """Of each kind of attack."""
    targets: int = 40
    """Rows that one gate asks about."""
    few: int = 4
    """Local steps of a round that reads few of a client's rows."""
    single: int = 16
    """Clients, of as few rows, that are asked about one row each."""
    many: int = 250
    """Local steps of the paper."""
    words: tuple[int, int] = (6, 12)
    """Least and most words of a question that is rebuilt."""
    rebuilt: int = 4
    """Questions that are rebuilt."""
    answers: int = 3
    """Answers that are rebuilt."""


@dataclass(frozen=True)
class Line:
    """One number."""

    attack: str
    variant: str
    defence: str
    steps: int
    trials: str
    """Members and others, or rows."""
    measure: str
    value: float


class Study:
    """All attacks on one model and one set of rows."""

    def __init__(self, victim: Victim, sizes: Sizes) -> None:
        """Draw who has which rows.

        Args:
            victim: model and data.
            sizes: of everything.
        """
        self.victim, self.sizes = victim, sizes
        rows = victim.rows(sizes.longest)
        order = numpy_generator(victim.config.seed, "leakage").permutation(len(rows)).tolist()
        drawn = [rows[index] for index in order]
        self.public, self.private = drawn[: sizes.public], drawn[sizes.public :]
        self.features = victim.features(self.public)
        self.template = Template(self.public)

    def run(self) -> Iterator[Line]:
        """All lines, those of one attack after those of another."""
        yield from self.units()
        yield from self.experts()
        yield from self.honest()
        yield from self.signs()
        yield from self.questions()
        yield from self.answers()

    def units(self) -> Iterator[Line]:
        """A malicious server that binds hidden units of the gate to rows."""
        sizes = self.sizes
        one = partial(bound_units, ridge=RIDGE)
        whole = Game(sizes.clients, sizes.targets, sizes.held, (sizes.few, sizes.held))
        answers = self._asked(one, whole)
        yield from self._defended("gate's units", answers[sizes.held], sizes.held)
        merit = membership.judged(answers[sizes.few], _as_it_is)
        yield from _lines("gate's units", f"max-rows={sizes.few}", sizes.few, merit)
        yield from self._refused("gate's units", answers[sizes.held][0])
        long = self._asked(one, Game(1, sizes.targets, sizes.held, (sizes.many,)))[sizes.many]
        yield from self._defended("gate's units", long, sizes.many)
        eight = partial(bound_units, ridge=RIDGE, units=8)
        fewer = Game(sizes.clients, sizes.targets // 5, sizes.held, (sizes.held,))
        yield from self._defended(
            "gate's units, 8 a row", self._asked(eight, fewer)[sizes.held], sizes.held
        )

    def experts(self) -> Iterator[Line]:
        """A malicious server that binds experts to rows."""
        sizes, name = self.sizes, "experts' vectors"
        targets = self.victim.config.prompts.experts - 1
        game = Game(sizes.clients, targets, sizes.held, (sizes.held,))
        answers = self._asked(partial(bound_experts, ridge=RIDGE), game)[sizes.held]
        yield from self._defended(name, answers, sizes.held)
        yield from self._refused(name, answers[0])
        told = membership.judged_by_gate(answers)
        yield from _lines("gate weights told", "none", sizes.held, told)
        alone = Game(sizes.single, 1, sizes.few, (sizes.few,))
        answers = self._asked(partial(bound_experts, ridge=RIDGE), alone)[sizes.few]
        name = f"{name}, one row of clients with {sizes.few}"
        yield from self._defended(name, answers, sizes.few)
        yield from self._refused(name, answers[0])

    def _asked(self, craft: membership.Craft, game: Game) -> dict[int, list[Answer]]:
        return membership.asked(self.victim, craft, game, self.private, self.features)

    def _defended(self, attack: str, answers: Sequence[Answer], steps: int) -> Iterator[Line]:
        for defence, seen in self._seen_of_one().items():
            draws = 1 if seen is _as_it_is else _DRAWS
            yield from _lines(attack, defence, steps, membership.judged(answers, seen, draws))

    def _seen_of_one(self) -> dict[str, Seen]:
        """What the attacker sees of one client's update, by defence."""
        seen: dict[str, Seen] = {"none": _as_it_is}
        for noise in (0.0, 0.001, 0.01, 0.1):
            policy = Policy(clip_norm=_CLIP, noise=noise)
            seen[f"clip-norm={_CLIP:g} noise={noise:g}"] = partial(leaving, policy)
        draw = numpy_generator(self.victim.config.seed, "central")
        for clients, multiplier in ((10, 0.0), (10, 0.1), (10, 1.0), (100, 0.1)):
            # other clients leave alone what is bound to a row that they do not have
            seen[f"release of n={clients} z={multiplier:g}"] = partial(
                _among_others, clients=clients, multiplier=multiplier, draw=draw
            )
        return seen

    def _refused(self, attack: str, answer: Answer) -> Iterator[Line]:
        """Norms of what is crafted, and whether limits at an honest server's refuse it."""
        victim, crafted = self.victim, answer.probe.start
        honest = {**victim.start, **victim.frozen}
        change = norm({name: crafted[name] - victim.start[name] for name in crafted})
        for measure, value in (
            ("norm sent", norm({**crafted, **victim.frozen})),
            ("norm sent by an honest server", norm(honest)),
            ("change from an honest server", change),
            ("change of an honest client", norm(answer.update)),
        ):
            yield Line(attack, "norms", "none", self.sizes.held, "1", measure, value)
        limit = 1.05 * norm(honest)
        for defence, policy, messages in (
            ("max-norm 1.05 × honest", Policy(max_norm=limit), [crafted]),
            ("max-change=10, first of the run", Policy(max_change=10.0), [crafted]),
            (
                "max-change=10, after an honest one",
                Policy(max_change=10.0),
                [victim.start, crafted],
            ),
            ("min-clients=2, a server that lies", Policy(min_clients=2), [crafted]),
        ):
            why = refusal(policy, victim.config, messages, victim.frozen, clients=10)
            yield Line(attack, "policy", defence, self.sizes.held, "1", "refused", float(bool(why)))

    def honest(self) -> Iterator[Line]:
        """An honest server that is curious: which rows were read, by the update they led to."""
        victim, steps = self.victim, self.sizes.held
        rows = self._honest_rows
        gradients = membership.gradients_of(victim, rows)
        for played in self._rounds.values():
            yield from self._curious(played, gradients)
        played = self._rounds[steps]
        after = np.stack([victim.losses(own, rows) for own in played.trained])
        gained = victim.losses(victim.start, rows) - after
        for name, scores in (
            ("loss difference", gained),
            ("loss difference, calibrated", membership.calibrated(gained)),
        ):
            yield from _lines(f"honest: {name}", "none", steps, played.judged(scores))

    @property
    def _honest_rows(self) -> list[Tokenised]:
        return self.private[: self.sizes.clients * self.sizes.held]

    @cached_property
    def _rounds(self) -> dict[int, membership.Rounds]:
        """Rounds of an honest server, by local steps; the longest of one client alone."""
        sizes = self.sizes
        play = partial(membership.honest_round, self.victim, self._honest_rows, held=sizes.held)
        return {
            **{n: play(clients=sizes.clients, steps=n) for n in (1, 8, sizes.held)},
            sizes.many: play(clients=1, steps=sizes.many),
        }

    def _curious(self, played: membership.Rounds, gradients: np.ndarray) -> Iterator[Line]:
        steps = next(n for n, own in self._rounds.items() if own is played)
        for defence, seen in self._seen_of_one().items():
            if "release" in defence:
                continue
            shown = [seen(played.start, own) for own in played.updates]
            scores = membership.cosines(shown, gradients, signs=True)
            yield from _lines("honest: cosine of signs", defence, steps, played.judged(scores))
            if len(shown) > 1:
                merit = played.judged(membership.calibrated(scores))
                yield from _lines("honest: cosine of signs, calibrated", defence, steps, merit)
        scores = membership.cosines(played.updates, gradients, signs=False)
        yield from _lines("honest: cosine", "none", steps, played.judged(scores))

    def signs(self) -> Iterator[Line]:
        """How much the signs of the gate's input can tell, which are all that one step shows."""
        positive = (self.features > 0).mean(0)
        both = np.stack([positive, 1 - positive]).clip(1e-12)
        bits = -(both * np.log2(both)).sum(0)
        for measure, value in (
            ("inputs", float(len(bits))),
            ("of which in 1 % of questions or more the sign differs", (both.min(0) >= 0.01).sum()),
            ("bits, if they were independent", bits.sum()),
        ):
            trials = str(self.sizes.public)
            yield Line("signs", "the gate's input", "none", 1, trials, measure, float(value))

    def questions(self) -> Iterator[Line]:
        """Words of questions from the gate's part of an update."""
        sizes, victim = self.sizes, self.victim
        least, most = sizes.words
        fitting = [r for r in self.private if least <= len(self.template.inner(r)) <= most]
        rows, others = fitting[: sizes.rebuilt], fitting[sizes.rebuilt : 2 * sizes.rebuilt]
        readers = {s: Reader(self.public, self.features, signs=s) for s in (False, True)}
        plain = [victim.gradient(victim.start, row) for row in rows]
        one = [self._round([row], 1) for row in rows]
        foreign = [self._round([row], 1) for row in others]
        alone = [[row] for row in rows]
        cases: list[tuple[str, int, bool, Sequence[Tensors | None], list[list[Tokenised]]]] = [
            ("without an update", 0, True, [None] * len(rows), alone),
            ("plain gradient", 1, False, plain, alone),
            ("one step", 1, True, one, alone),
            ("one step of another row", 1, True, foreign, alone),
        ]
        for steps in (8, sizes.many):
            updates: list[Tensors] = self._rounds[steps].updates[:2]
            truths = [
                [row for row, read in zip(self._honest_rows, mask, strict=True) if read]
                for mask in self._rounds[steps].read[:2]
            ]
            name = f"best of the rows of {steps} steps"
            cases.append((f"{name}, without an update", 0, True, [None] * len(truths), truths))
            cases.append((name, steps, True, updates, truths))
            if len(updates) > 1:
                swapped = updates[::-1]
                cases.append((f"{name}, another client's", steps, True, swapped, truths))
        for variant, steps, signs, shown, truths in cases:
            reader = readers[signs]
            scores = [
                self._read(reader, own, truth) for own, truth in zip(shown, truths, strict=True)
            ]
            for measure in ("bag recall", "token recall", "ROUGE-L"):
                value = float(np.mean([score[measure] for score in scores]))
                yield Line("question", variant, "none", steps, str(len(scores)), measure, value)

    def _round(self, rows: Sequence[Tokenised], steps: int) -> Tensors:
        start = self.victim.start
        return difference(self.victim.trained(start, rows, steps, "questions").tensors, start)

    def _read(
        self, reader: Reader, own: Tensors | None, truth: Sequence[Tokenised]
    ) -> dict[str, float]:
        """Scores of the row among those trained on that comes closest."""
        template, tokenizer = self.template, load_tokenizer(self.victim.config.backbone)
        shown = None if own is None else reader.shown_by(own)
        count = round(float(np.mean([len(template.inner(row)) for row in truth])))
        if shown is None:
            found = guessed(self.victim, template, count)
        else:
            found = Search(self.victim, reader, template).rebuilt(shown, count)
        text = str(tokenizer.decode(found))
        best = dict.fromkeys(("bag recall", "token recall", "ROUGE-L"), 0.0)
        for row in truth:
            words = set(template.inner(row))
            likely = bag(reader, template, shown, count)[: len(words)]
            scores = {
                "bag recall": len(words & set(likely)) / len(words),
                "token recall": len(words & set(found)) / len(words),
                "ROUGE-L": rouge_l(str(tokenizer.decode(list(template.inner(row)))), text),
            }
            best = {name: max(best[name], value) for name, value in scores.items()}
        return best

    def answers(self) -> Iterator[Line]:
        """Words of answers whose questions are known, from a whole update."""
        victim = self.victim
        fitting = [row for row in self.private if 3 <= len(row.answer) <= 6]
        rows = fitting[: self.sizes.answers]
        others = fitting[self.sizes.answers : 2 * self.sizes.answers]
        plain: Callable[[Tokenised], Tensors] = lambda row: {  # noqa: E731
            name: -own for name, own in victim.gradient(victim.start, row).items()
        }
        for variant, signs, updates in (
            ("without an update", True, [None] * len(rows)),
            ("plain gradient", False, [plain(row) for row in rows]),
            ("one step", True, [self._round([row], 1) for row in rows]),
            ("one step of another row", True, [self._round([row], 1) for row in others]),
        ):
            recalls = []
            for row, own in zip(rows, updates, strict=True):
                found, words = answered(victim, own, row, signs=signs), set(row.answer[:-1])
                recalls.append(len(words & set(found)) / len(words))
            steps = int(variant != "without an update")
            value = float(np.mean(recalls))
            yield Line("answer", variant, "none", steps, str(len(rows)), "token recall", value)


def _as_it_is(_start: Tensors, update: Tensors) -> Tensors:
    return update


def _among_others(
    _start: Tensors, update: Tensors, *, clients: int, multiplier: float, draw: np.random.Generator
) -> Tensors:
    nothing = {name: np.zeros_like(value) for name, value in update.items()}
    return central_release([update, *[nothing] * (clients - 1)], _CLIP, multiplier, draw)


def _lines(attack: str, defence: str, steps: int, merit: Merit) -> Iterator[Line]:
    trials = f"{merit.members}+{merit.others}"
    for measure, value in (
        ("AUC", merit.auc),
        ("advantage", merit.advantage),
        ("TPR at 1 % FPR", merit.tpr),
    ):
        yield Line("membership", attack, defence, steps, trials, measure, value)
