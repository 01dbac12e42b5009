"""Which error rate a run counts, by the languages of its clients."""

from __future__ import annotations

import pytest
import toys

from fedsim.scenario import Scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.spaces import is_unspaced
from fedsim.study.metric import metric_of, segmented_line, unspaced_line

TEXTS = {
    "zh": "我想听音乐",
    "ja": "今日は良い天気です",
    "th": "สวัสดีครับ",
    "ko": "오늘은 날씨가 좋습니다",
    "en": "play some music",
    "": "play some music",
}


@pytest.fixture
def scenario(tmp_path):
    """A scenario of one speaker for each (language, text)."""

    def make(*pairs, **more):
        people, rows = toys.SPEAKERS[: len(pairs)], []
        for person, (language, text) in zip(people, pairs, strict=True):
            for i in range(2):
                name = f"{person}/{i}.wav"
                toys.write_wav(tmp_path / name, toys.clip(0.3, i))
                rows.append({"file_name": name, "speaker": person, "text": text})
                rows[-1]["language"] = language
        toys.write_metadata(tmp_path, rows)
        corpus = {"path": str(tmp_path), "group_by": "speaker", "tuning_clips": 1, "test_clips": 1}
        base = {"name": "toy", "model": {"id": "bundled:ctc"}, "clients": {"budget_mb": 1}}
        return Scenario.model_validate({**base, "corpus": corpus, "methods": ["fp32"], **more})

    return make


def hint(made: Scenario) -> str:
    return unspaced_line(made, open_clients(made.corpus, made.clients, made.seed))


def test_by_language_or_script(scenario):
    for pairs, metric, named in (
        ([("zh", "x")], "cer", "ann"),
        ([("zh", "x"), ("ja", "y"), ("th", "z")], "cer", "ann, bob, cyd"),
        ([("", TEXTS["zh"]), ("", TEXTS["th"])], "cer", "ann, bob"),  # Kaldi says no language
        ([("cmn_hans_cn", "x"), ("en", TEXTS["en"])], "wer", "ann"),
        ([("ko", TEXTS["ko"])], "wer", ""),
        ([("", TEXTS["en"])], "wer", ""),
        ([("", "1 2 3"), ("ja", "4")], "cer", "bob"),  # of the first nothing is known
        ([("", "1 2 3")], "wer", ""),
    ):
        made = scenario(*pairs)
        assert metric_of(made) == metric, pairs
        line = hint(made)
        assert bool(line) == bool(named)
        assert f"the language of {named} is written without" in line or not named


def test_references_with_spaces_between_characters(scenario):
    made = scenario(("zh", "我 想 听 音乐"), ("zh", "我想听 WiFi 音乐"), ("en", TEXTS["en"]))
    line = segmented_line(open_clients(made.corpus, made.clients, made.seed))
    assert "the references of ann have some between characters" in line
    assert "set text_normalizer: unspaced" in line


def test_a_metric_that_is_chosen_stays(scenario):
    chinese, english = ("zh", TEXTS["zh"]), ("en", TEXTS["en"])
    assert metric_of(scenario(chinese, metric="wer")) == "wer"
    assert metric_of(scenario(english, metric="cer")) == "cer"


def test_synthetic_speakers_and_a_server_without_recordings():
    def made(corpus, **more):
        base = {"name": "toy", "model": {"id": "bundled:ctc"}, "clients": {"budget_mb": 1}}
        corpus = {"group_by": "speaker", **corpus}
        return Scenario.model_validate({**base, "corpus": corpus, "methods": ["fp32"], **more})

    for languages, metric in ((["ja"], "cer"), (["ja", "en"], "wer"), (["ko"], "wer")):
        people = {"speakers": 2, "languages": languages}
        assert metric_of(made({"kind": "voices", "population": people})) == metric
    assert metric_of(made({"path": "/nowhere"})) == "wer"


def test_names_of_languages():
    for known in ("zh", "zh-CN", "yue_hant_hk", "Japanese", "ja_jp", "tha", "Burmese", "bo"):
        assert is_unspaced(known)
    for other in ("en", "ko", "vi", "xh", "Khoekhoe", "", "id"):
        assert not is_unspaced(other)
