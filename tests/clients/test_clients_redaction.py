"""The reason that a device sends for a failure: no path, no file name, no word of its user."""

import re

import pytest
from fedsim_clients.redaction import redacted_reason

from fedsim.errors import AudioError, FedsimError
from fedsim.protocol import messages as m
from fedsim.speech.clips import ClientData, Utterance, read_utterance


def data_of(tmp_path):
    path = tmp_path / "home of ann" / "secret.wav"
    tuning = (Utterance("secret.wav", path), Utterance("b/2.wav", tmp_path / "b/2.wav"))
    test = (Utterance("c/3.wav", tmp_path / "c/3.wav", text="call my doctor"),)
    return ClientData("ann", tuning, test), path


def test_reasons_name_clips_by_number(tmp_path):
    data, path = data_of(tmp_path)
    for text, sent in (
        (
            f"audio file {path} is empty; leave it out",
            "client 'ann': tuning clip 1 is empty; leave",
        ),
        (f"client 'ann': {tmp_path}/b/2.wav: no", "client 'ann': tuning clip 2: no"),
        ("label 'call my doctor' is unknown", "client 'ann': label the text of test clip"),
        ("see /etc/secret/file.txt, or ~/notes", "client 'ann': see a local file, or a local file"),
        ("3 / 4 of 1/2 clips", "client 'ann': 3 / 4 of 1/2 clips"),
    ):
        reason = redacted_reason(AudioError(text), "ann", m.SENSE, data)
        assert reason.startswith(sent)
        assert str(tmp_path) not in reason


PATHS = {
    "cannot read /home/anna smith/My Calls/doctor visit.wav: no": "cannot read a local file: no",
    "file C:\\Users\\Anna Smith\\x.wav bad": "file a local file bad",
    "data/alice/secret.csv is broken": "a local file is broken",
    "'data/my calls/a b.tar.gz' is broken": "a local file is broken",
    '"/home/anna smith" is not a folder': "a local file is not a folder",
    "/home/anna smith/calls is empty": "a local file is empty",
    "../anna/notes, ~anna/notes: no": "a local file, a local file: no",
    "/home/a.b c/My d.wav, no": "a local file a local file, no",
    "/srv/calls, old (2); x/a b.wav: no": "a local file: no",
    "/srv/calls, old (2)/b/notes: no": "a local file: no",
    "data/calls, old (2)/a.csv is broken": "a local file is broken",
}
NO_PATHS = (
    "the file of 'myqasr/minmax' takes 3 / 4 of 1/2",
    "set privacy.budget to 3.5 or 1e-5",
)


def test_paths_are_replaced_whole_with_their_spaces(tmp_path):
    data, _ = data_of(tmp_path)
    for text, sent in (*PATHS.items(), *zip(NO_PATHS, NO_PATHS, strict=True)):
        assert redacted_reason(FedsimError(text), "ann", m.SENSE, data) == f"client 'ann': {sent}"


def test_of_a_client_whose_clips_are_unknown_only_the_type_is_sent():
    reason = redacted_reason(FedsimError("audio file call my doctor"), "ann", m.SENSE, None)
    assert reason == "client 'ann' failed in query.sense: FedsimError in code outside fedsim"


class Mumbling:
    """A clip over which Python raises an error that quotes a user."""

    def render(self):
        return float("call my doctor")


def test_of_other_errors_only_the_type_and_our_line_are_sent(tmp_path):
    data, path = data_of(tmp_path)
    try:
        read_utterance(Utterance("one", Mumbling()))
    except ValueError as error:
        reason = redacted_reason(error, "ann", m.EVALUATE, data)
    beginning = "client 'ann' failed in evaluate.candidates: ValueError in fedsim/speech/clips.py:"
    assert re.fullmatch(rf"{re.escape(beginning)}\d+", reason)
    error = FileNotFoundError(2, "No such file or directory", str(path))
    reason = redacted_reason(error, "ann", m.SENSE, None)
    assert "FileNotFoundError (No such file or directory) in code outside" in reason


def test_a_reason_is_cut(tmp_path):
    data, _ = data_of(tmp_path)
    assert len(redacted_reason(FedsimError("x" * 9_999), "ann", m.SENSE, data)) == 1_000


@pytest.mark.parametrize("name", ["calls, of ann; (2)", "a. b", "é (x", "x;y", 'a\'s "b"', "x: y"])
def test_a_path_that_exists_is_replaced_to_its_end(tmp_path, name):
    """Without an extension, only the device's own disk tells where it ends."""
    data, _ = data_of(tmp_path)
    folder = tmp_path / "calls of ann" / name
    folder.mkdir(parents=True)
    for text, sent in (
        (f"{folder}: it is empty", "a local file: it is empty"),
        (f"the folder {folder} is empty; add clips", "the folder a local file is empty; add clips"),
        (f"{folder}, {folder}", "a local file, a local file"),
        (f"see ({folder})", "see (a local file)"),
        (f"no {folder}", "no a local file"),
    ):
        assert redacted_reason(FedsimError(text), "ann", m.SENSE, data) == f"client 'ann': {sent}"
    file = folder / "talk, with bob (1).wav"
    reason = redacted_reason(FedsimError(f"{file}: gone"), "ann", m.SENSE, data)
    for word in ("ann;", "talk", "bob", "(1)"):
        assert word not in reason
