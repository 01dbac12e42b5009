"""The typed messages: the only types that clients and server share.

Each is a frozen dataclass of numbers, names and bit depths: there is no field in which audio, text
or an activation could travel. `fedsim.protocol.codec` carries them in Flower's RecordDict.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.privacy.secure_aggregation import wire
from fedsim.quant.profile import LayerProfile, profile_of

SENSE = "query.sense"
PERSONALIZE = "train.personalize"
EVALUATE = "evaluate.candidates"
JOIN, SHARE, MASK, UNMASK = "query.join", "query.share", "query.mask", "query.unmask"
"""The four exchanges of secure aggregation (`fedsim.privacy.secure_aggregation.wire`)."""
STAGES = {
    SENSE: "sense",
    JOIN: "join",
    SHARE: "share",
    MASK: "mask",
    UNMASK: "unmask",
    PERSONALIZE: "personalize",
    EVALUATE: "evaluate",
}
"""Message type -> what a ledger and a scenario call the stage."""

DECLINED = 1_001
"""Code of the reply of a device that has spent its privacy budget; Flower's own are below 1,000."""

HASH_BYTES = 32
"""Of a SHA-256, by which packed layers are called."""
PROTOCOL = 1
"""Version of the messages; client and server must speak the same."""


@dataclass(frozen=True)
class SenseRequest:
    """Server to client: observe your clips. An empty `measure` asks for the profile alone.

    `quantiles` asks for the distribution of each layer's output too: set only by a scenario that
    says `study: true`, and written in the ledger as a release. So is `workload`, set only by a
    scenario with a fleet: how much audio there is, for its virtual clock.

    `round` counts the releases of one device, from 1; `low` and `high` are the public bounds of
    each layer, where the scenario's release reads them. What is released is the device's own
    scenario's choice, and no server's.
    """

    measure: str
    quantiles: bool = False
    workload: bool = False
    round: int = 1
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Client to server: the device's profile and, per layer, one sensitivity.

    `budget_bytes` is the room for a model file, `bit_depths` what the runtime executes, `clips` how
    many clips were observed. `sensitivity` is the layer profile (`fedsim.quant.profile`), layer by
    layer; of a table, `depths` are the bit depths of its columns. It is empty when none was asked
    for.
    `quantiles` are those of every layer's output one after the other, `workload` the seconds of
    audio and the tokens of the model's own transcripts, when the server asked. Where the scenario
    releases something else than values, `sensitivity` is empty and `payload` holds what is
    released, to the byte (`fedsim.privacy.releases`).
    """

    client: str
    budget_bytes: int
    bit_depths: tuple[int, ...]
    clips: int
    sensitivity: tuple[float, ...]
    quantiles: tuple[float, ...] = ()
    workload: tuple[float, ...] = ()
    payload: bytes = b""
    depths: tuple[int, ...] = ()

    def profile(self, measure: str) -> LayerProfile | None:
        """Return the layer profile, None if the summary holds none.

        Raises `FedsimError` for values that are not a profile.
        """
        if not self.sensitivity:
            return None
        return profile_of(self.sensitivity, measure, self.depths)


@dataclass(frozen=True)
class Candidate:
    """A mixed-precision model: bit depth per layer, and where its packed layers are.

    `blobs` are 32 bytes per layer, the SHA-256 of its packed form. `ranges` are activation ranges,
    low and high per layer, NaN where a layer has none; empty means that the device calibrates on
    its own clips. `name` tells candidates of one client apart.
    """

    name: str
    calibration: str
    tuned_on: str
    bits: tuple[int, ...]
    blobs: bytes
    ranges: tuple[float, ...] = ()

    def blob(self, layer: int) -> str:
        """Return the name of a layer's packed form in a bank: its SHA-256, in hex."""
        return self.blobs[layer * HASH_BYTES : (layer + 1) * HASH_BYTES].hex()


@dataclass(frozen=True)
class Delivery:
    """Server to client: your models.

    `return_ranges` asks for the activation ranges of each candidate: set only by a study that tests
    one client's model on another, and written in the ledger as a release. `layers` are packed
    layers, each told by its hash, that the device was not sent before; none where devices read them
    from the server's bank.
    """

    return_ranges: bool
    candidates: tuple[Candidate, ...]
    layers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """Client to server: exact bytes of each candidate's model file, in the order delivered.

    `ranges` are those of every candidate one after the other, when the delivery asked for them.
    """

    client: str
    file_bytes: tuple[int, ...]
    ranges: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """Server to client: test these candidates on your held-out clips, and full precision if
    asked.

    `clip_counts` asks for the counts of each clip as well: set only by a scenario that says
    `study: true`, and written in the ledger as a release; `workload` as in `SenseRequest`, `layers`
    as in `Delivery`.
    """

    full_precision: bool
    candidates: tuple[Candidate, ...]
    clip_counts: bool = False
    workload: bool = False
    layers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Client to server: error counts, summed over the client's test clips.

    One value per candidate, in the order asked for, full precision first. A recognizer fills
    errors, words, char_errors, chars; a classifier fills correct; the others are empty.
    `file_bytes` are those of the candidate's model file (full precision: its float32 weights).
    `low` and `high` bound a 95 % interval of the word error rate or accuracy, which the device
    computes itself: no count of a single clip leaves it, unless the server asked for them:
    `clip_wrong` and `clip_of` are then those of every candidate one after the other, word errors
    and words of each clip, or 0 or 1 and 1 of a classifier. `workload` is the seconds of audio, if
    asked for.
    """

    client: str
    clips: int
    file_bytes: tuple[int, ...]
    errors: tuple[int, ...]
    words: tuple[int, ...]
    char_errors: tuple[int, ...]
    chars: tuple[int, ...]
    correct: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clip_wrong: tuple[int, ...] = ()
    clip_of: tuple[int, ...] = ()
    workload: tuple[float, ...] = ()


Group = (
    wire.Invitation
    | wire.Keys
    | wire.Roster
    | wire.Envelopes
    | wire.Post
    | wire.Masked
    | wire.Survivors
    | wire.Shares
)
"""What members of a group and the server send each other."""
Message = SenseRequest | Summary | Delivery | Receipt | Evaluation | Scores | Group
