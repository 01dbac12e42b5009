"""The typed messages between clients and server.

Each is a frozen dataclass of numbers, names and bit depths: no field could carry audio, text or
activations. `fedsim.protocol.codec` encodes them as Flower's RecordDict.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.privacy.secure_aggregation import wire
from fedsim.quant.profile import LayerProfile, profile_of
from fedsim.quant.runtimes import EMULATED
from fedsim.scenario.scores import BASIC

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
"""Message type -> name of its stage in ledgers and scenarios."""

DECLINED = 1_001
"""Error code of a device that has spent its privacy budget; Flower's own are below 1,000."""

HASH_BYTES = 32
"""Bytes of a SHA-256, the name of a packed layer."""
PROTOCOL = 5
"""Version of the messages; client and server must use the same."""


@dataclass(frozen=True)
class SenseRequest:
    """Server to client: observe your clips. An empty `measure` requests the device's facts only.

    `quantiles` requests the distribution of each layer's output too: only in a scenario with
    `study: true`, and logged in the ledger as a release. `workload` requests the amount of audio
    for the virtual clock: only in a scenario with a fleet, and logged likewise.

    `round` numbers the releases of one device, from 1; `low` and `high` are the public bounds of
    each layer, where the scenario's release reads them. The device's own scenario chooses what is
    released, not the server.
    """

    measure: str
    quantiles: bool = False
    workload: bool = False
    round: int = 1
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Client to server: facts of the device, and its layer profile.

    `budget_bytes` is the maximum size of a model file, `bit_depths` those that the runtime
    executes, `clips` the number of clips observed. `sensitivity` is the layer profile
    (`fedsim.quant.profile`), layer by layer; for a table, `depths` are the bit depths of its
    columns. It is empty when none was requested.

    `quantiles` are those of every layer's output, layer by layer; `workload` is the seconds of
    audio and the tokens of the model's own transcripts. Both are empty unless requested. Where the
    scenario's release is not the plain values, `sensitivity` is empty and `payload` holds exactly
    what is released (`fedsim.privacy.releases`). `language` is that of the clips where
    model files hold the tokens of the client's language only, else empty.
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
    language: str = ""

    def profile(self, measure: str) -> LayerProfile | None:
        """Return the layer profile, None if the summary holds none.

        Raises `FedsimError` for values that do not form a profile.
        """
        if not self.sensitivity:
            return None
        return profile_of(self.sensitivity, measure, self.depths)


@dataclass(frozen=True)
class Candidate:
    """A mixed-precision model: bit depth per layer, and the names of its packed layers.

    `blobs` has 32 bytes per layer, the SHA-256 of its packed form; it is empty where the device
    rounds its full-precision weights itself, by `rounding`, on second moments that are `own` or a
    `blend` with those of public clips (`moments`, else empty; `public` is the name of the clips).
    `input_bits` are the bit depths of the layers' inputs. `ranges`
    are activation ranges, low and high per layer, NaN where a layer has none; empty means that the
    device calibrates. `tuned_on` is the key of the client whose clips it was tuned on, empty if
    nobody's. `name` is the label of the method; with `tuned_on` it identifies a candidate
    of one client. `runtime` is what computes it when it is tested.
    """

    name: str
    calibration: str
    tuned_on: str
    bits: tuple[int, ...]
    blobs: bytes
    input_bits: tuple[int, ...]
    rounding: str = ""
    moments: str = ""
    public: bytes = b""
    ranges: tuple[float, ...] = ()
    runtime: str = EMULATED

    @property
    def rounded_here(self) -> bool:
        """Whether the device rounds the weights."""
        return not self.blobs

    def blob(self, layer: int) -> str:
        """Return the name of a layer's packed form in a bank: its SHA-256, in hex."""
        return self.blobs[layer * HASH_BYTES : (layer + 1) * HASH_BYTES].hex()


@dataclass(frozen=True)
class Delivery:
    """Server to client: the models tuned on your clips.

    `return_models` requests the activation ranges of each candidate, and the packed layers that the
    device rounded itself: only in a study that tests one client's model on another, and logged in
    the ledger as a release. `layers` are the packed layers
    that were not sent to the device before, identified by their hashes; empty where devices read
    them from the server's bank.
    """

    return_models: bool
    candidates: tuple[Candidate, ...]
    layers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """Client to server: exact bytes of each candidate's model file, in the order delivered.

    `ranges` are those of every candidate, one after the other; empty unless requested. `blobs` are
    likewise the names, in the bank, of the packed layers of every candidate that the device rounded
    itself.
    """

    client: str
    file_bytes: tuple[int, ...]
    ranges: tuple[float, ...]
    blobs: bytes = b""


@dataclass(frozen=True)
class Evaluation:
    """Server to client: test these candidates on your held-out clips, after full precision if it
    is requested.

    `clip_counts` requests the counts of each clip too: only in a scenario with `study: true`, and
    logged in the ledger as a release. `workload` is as in `SenseRequest`, `layers` as in
    `Delivery`. `metric`, "wer" or "cer", says of what the interval, the counts of each clip and
    those of clips that looped are; a classifier does not read it. `text_normalizer` names how
    references and transcripts are normalized. `rare_beyond` requests the counts on rare words, of
    a recognizer: those beyond that many of the most frequent of their language; 0 requests none.
    """

    full_precision: bool
    candidates: tuple[Candidate, ...]
    clip_counts: bool = False
    workload: bool = False
    layers: tuple[bytes, ...] = ()
    metric: str = "wer"
    text_normalizer: str = BASIC
    rare_beyond: int = 0


@dataclass(frozen=True)
class Scores:
    """Client to server: error counts, summed over the client's test clips.

    One value per candidate, in the order of the request, full precision first. A recognizer fills
    `errors`, `words`, `char_errors` and `chars`, a classifier fills `correct`; the others are
    empty. A model that decodes token by token also fills `looped`, the number of clips whose
    transcript was cut because the model repeated itself, and with their part of `errors` and
    `words` `looped_errors` and `looped_words` (of `char_errors` and `chars` if the metric that was
    requested is CER). `file_bytes` are the bytes of the model file (full precision: of all that the
    model holds, in its type). `low` and `high` bound a 95 % interval of the requested error rate or
    of the accuracy, which the device computes itself.

    No count of a single clip leaves the device unless requested: `clip_wrong` and `clip_of` are
    then the errors of each clip and its words, or characters if the metric is CER (of a classifier
    0 or 1, and 1), candidate by candidate. `workload` is the seconds of audio, if requested.
    `rare_words` are the rare words of the references, `rare_errors` those of them that were
    substituted or deleted: two sums over all clips, never the words; empty unless requested.
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
    looped: tuple[int, ...] = ()
    looped_errors: tuple[int, ...] = ()
    looped_words: tuple[int, ...] = ()
    clip_wrong: tuple[int, ...] = ()
    clip_of: tuple[int, ...] = ()
    workload: tuple[float, ...] = ()
    rare_errors: tuple[int, ...] = ()
    rare_words: tuple[int, ...] = ()


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
"""Messages of secure aggregation, between the server and members of a group."""
Message = SenseRequest | Summary | Delivery | Receipt | Evaluation | Scores | Group
