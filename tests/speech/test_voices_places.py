"""Where speakers stand: noises, telephone and far rooms, measured; a quiet place is as it was."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from voice_toys import PLAIN, RATE, TAKES, TEXT, clients, corpus, takes

from fedsim.errors import FedsimError
from fedsim.scenario import json_schema
from fedsim.scenario.explain import sentences
from fedsim.scenario.matrix import expand
from fedsim.scenario.place import DEFAULT_NOISES, NOISES, PLACES, PlaceSettings
from fedsim.scenario.schema import Scenario
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.acoustics import record
from fedsim.speech.voices.places import QUIET, Scene, scene_of
from fedsim.speech.voices.speaker import speaker
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE

BEFORE_PLACES = [
    (
        "2f24652c4c4b009cfa5152bd19aafd82e365fff7a45af69d18e4089f07a261fa",
        [-43, -1715, 9, -51, 233, 389, 1512, -619, 226],
    ),
    ("b13ce8284568f680959631028c04804c46e0856ea03ff363bfce0b5a57bf03a1", [19, -43, 135, 1]),
    (
        "75b73224e5325dffc7419e6d42b299033daf1e4970e18f973f189d7060ee075d",
        [-24, 768, -1585, -690, -76, 88],
    ),
    (
        "0ba357cf09176afeea753ab48e2c2c1629a874bff7820f7992ac2e0f2e3608b4",
        [179, 118, 111, -147, 29, -177, 71],
    ),
]
"""SHA-256 of the samples of `TAKES`, and every 4,001st sample in 16-bit steps, of the version that
had no places."""


def place(**settings) -> PlaceSettings:
    return PlaceSettings.model_validate(settings)


def scenes(number=1, language="en", **settings) -> list[Scene]:
    return [scene_of(place(**settings), speaker(language, n)) for n in range(number)]


def power_db(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


# --- the quiet place


@pytest.mark.parametrize(("take", "before"), zip(TAKES, BEFORE_PLACES, strict=True))
def test_a_quiet_clip_is_what_it_was_before_there_were_places(take, before):
    digest, samples = before
    clip = render(take)
    steps = (clip[::4001] * 32_768).astype(int)
    if hashlib.sha256(clip.tobytes()).hexdigest() != digest:  # another kind of processor
        np.testing.assert_allclose(steps, samples, atol=1)


def test_without_a_place_everybody_is_in_a_quiet_one():
    default, quiet = corpus(speakers=4), corpus(speakers=4, place="quiet")
    assert default == quiet
    assert {take.scene for take in takes(clients(default))} == {QUIET} == {Scene()}


# --- who stands where


def test_a_place_is_of_the_speaker_and_of_nobody_else():
    several = [{"kind": "noisy", "noise": ["car", "fan"]}, "telephone", "far"]
    base = takes(clients(corpus(speakers=24, place=several)))
    found = {take.speaker.key: take.scene for take in base}
    assert len({(t.speaker.key, t.scene) for t in base}) == 24  # one in all clips
    for change in ({"first": 10, "speakers": 5}, {"speakers": 12, "languages": ["fr", "en"]}):
        for take in takes(clients(corpus(place=several, **change), seed=3)):
            assert take.speaker.language == "fr" or found[take.speaker.key] == take.scene
    for group_by in ("gender", "language"):
        for take in takes(clients(corpus(group_by, speakers=24, place=several))):
            assert found[take.speaker.key] == take.scene


def test_speakers_are_divided_among_places_each_with_both_genders():
    found = clients(corpus(speakers=24, place=["quiet", "telephone", "far"]))
    counted = Counter()
    for client in found.values():
        scene = client.test[0].source.scene
        kind = "telephone" if scene.telephone else "far" if scene.echo_db is not None else "quiet"
        counted[kind, client.test[0].gender] += 1
    assert set(counted.values()) == {4}
    assert len(counted) == 6


def test_nothing_but_the_place_changes():
    def said(settings):
        return [(t.speaker, t.text, t.number) for t in takes(clients(settings))]

    assert said(corpus(place="far")) == said(corpus()) == said(corpus(place=["quiet", "noisy"]))
    lengths = {len(render(replace(TAKES[0], scene=scene))) for scene in scenes(kind="far")}
    lengths |= {len(render(replace(TAKES[0], scene=Scene(noise=n, snr_db=5.0)))) for n in NOISES}
    lengths |= {len(render(replace(TAKES[0], scene=Scene(telephone=True))))}
    assert lengths == {len(render(TAKES[0]))}


def test_noises_and_levels_are_drawn_evenly():
    found = scenes(2000, kind="noisy", noise=["car", "fan"], snr_db=[3, 9])
    counted = Counter(scene.noise for scene in found)
    assert set(counted) == {"car", "fan"}
    assert min(counted.values()) > 900
    levels = np.array([scene.snr_db for scene in found])
    assert 3 <= levels.min() < 3.1
    assert 8.9 < levels.max() <= 9
    assert levels.mean() == pytest.approx(6, abs=0.15)
    car = np.array([scene.noise == "car" for scene in found])
    assert abs(np.corrcoef(car, levels)[0, 1]) < 0.08
    assert levels[0] == scenes(kind="noisy", noise="music", snr_db=[3, 9])[0].snr_db
    assert {scene.noise for scene in scenes(200, kind="noisy")} == set(DEFAULT_NOISES)
    assert {scene.snr_db for scene in scenes(9, kind="noisy", snr_db=7)} == {7.0}


def test_a_take_in_a_place_travels_and_is_always_the_same():
    for scene in (Scene(noise="babble", snr_db=3.0), Scene(telephone=True)):
        take = replace(TAKES[2], scene=scene)
        clip = render(take)
        assert clip.dtype == np.float32
        assert np.abs(clip).max() < 1
        np.testing.assert_array_equal(clip * 32_768, np.rint(clip * 32_768))
        np.testing.assert_array_equal(render(pickle.loads(pickle.dumps(take))), clip)
        assert not np.array_equal(clip[: len(render(TAKES[2]))], render(TAKES[2]))


# --- what is heard


@pytest.mark.parametrize("name", DEFAULT_NOISES)
def test_the_noise_lies_as_far_below_the_speech_as_was_asked(name):
    tone = np.sin(2 * np.pi * 1000 * np.arange(SYNTHESIZER_RATE) / SYNTHESIZER_RATE + 1)
    for snr in (0.0, 7.0, 20.0):
        rngs = [np.random.default_rng(5) for _ in range(2)]
        scene = Scene(noise=name, snr_db=snr)
        who = replace(PLAIN, level_db=-30.0)
        with_noise = record((8000 * tone).astype(np.int16), who, rngs[0], 4.0, scene)
        without = record((8000 * tone).astype(np.int16), who, rngs[1], 4.0)
        noise_db = power_db(with_noise.astype(np.float64) - without)
        assert noise_db == pytest.approx(-30 - snr, abs=0.2)


def test_a_telephone_leaves_its_band():
    takes = [Take(replace(PLAIN, snr_db=20.0), TEXT, 0, 0.0, Scene(telephone=t)) for t in (0, 1)]
    direct, phone = (np.square(np.abs(np.fft.rfft(render(take)))) for take in takes)
    hertz = np.fft.rfftfreq(len(render(takes[0])), 1 / RATE)

    def kept_db(low: float, high: float) -> float:
        band = (hertz >= low) & (hertz < high)
        return 10 * np.log10(phone[band].sum() / direct[band].sum())

    within = kept_db(500, 3000)
    assert abs(kept_db(500, 1000) - within) < 1
    assert abs(kept_db(2500, 3000) - within) < 1
    assert kept_db(50, 150) < within - 20
    assert kept_db(4200, 8000) < within - 25


def test_companding_is_that_of_8_bits():
    """Its noise lies about 38 dB below the signal, whatever the level, as mu-law is made for."""
    loud = Take(replace(PLAIN, level_db=-20.0), TEXT, 0, 0.0, Scene(telephone=True))
    faint = replace(loud, speaker=replace(loud.speaker, level_db=-38.0))
    a, b = (render(take).astype(np.float64) for take in (loud, faint))
    scale = (a @ b) / (b @ b)
    assert 20 * np.log10(scale) == pytest.approx(18, abs=0.1)
    ratio = power_db(a) - power_db(a - scale * b)  # the noise of both
    assert 28 < ratio < 42


def test_a_far_room_echoes_more_than_any_own_room():
    for scene in scenes(200, kind="far"):
        assert 0.4 <= scene.reverberation_s <= 0.7
        assert -4 <= scene.echo_db <= 1
    click = np.zeros(2000, np.int16)
    click[1000] = 32_000
    who = replace(PLAIN, level_db=-40.0)
    clip = record(click, who, np.random.default_rng(0), 3.0, Scene(None, None, 0.6, 0.0))
    power, at = np.square(clip, dtype=np.float64), int(np.abs(clip).argmax())
    near = int(0.003 * RATE)
    direct, echo = power[at - near : at + near].sum(), power.sum()
    assert 10 * np.log10((echo - direct) / direct) == pytest.approx(0, abs=0.7)


# --- what a scenario may say


def test_a_place_in_a_scenario_comes_back():
    for written in (
        "telephone",
        {"kind": "noisy", "snr_db": 7, "noise": "babble"},
        ["quiet", {"kind": "noisy", "snr_db": [0, 10.5], "noise": ["car", "fan"]}],
    ):
        settings = corpus(place=written)
        assert type(settings).model_validate(settings.model_dump()) == settings
        assert type(settings).model_validate(json.loads(settings.model_dump_json())) == settings
    assert corpus(place="far").population.place == PlaceSettings(kind="far")
    assert place(kind="noisy", snr_db=7).model_dump()["snr_db"] == 7


def test_places_of_a_matrix():
    document = {
        "name": "toy",
        "model": {"id": "m"},
        "corpus": {"kind": "voices", "group_by": "speaker", "population": {"speakers": 2}},
        "clients": {"budget_mb": 1},
        "methods": ["fp32"],
        "matrix": {"corpus.population.place": ["quiet", {"kind": "noisy", "snr_db": 7}]},
    }
    found = [cell.scenario.corpus.population.place for cell in expand(Scenario(**document))]
    assert found == [PlaceSettings(), PlaceSettings(kind="noisy", snr_db=7)]


def test_the_json_schema_names_places_and_noises():
    text = json.dumps(json_schema()["$defs"]["PopulationSettings"]["properties"]["place"])
    assert all(f'"{name}"' in text for name in PLACES)
    text = json.dumps(json_schema()["$defs"]["PlaceSettings"])
    assert all(f'"{name}"' in text for name in NOISES)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("nosy", "place.kind: there is no place 'nosy': did you mean 'noisy'?"),
        (3, "place is 3: must be a mapping"),
        ([], "place is an empty list: must not be empty"),
        ({"kind": "far", "snr_db": 3}, "place.snr_db: the place 'far' takes no snr_db: remove it"),
        ({"noise": "car"}, "place.noise: the place 'quiet' takes no noise: remove it"),
        ({"kind": "noisy", "snr_db": 61}, "place.snr_db is 61: must be at most 60"),
        ({"kind": "noisy", "snr_db": [9, 3]}, "place.snr_db: [9, 3] runs down"),
        ({"kind": "noisy", "snr_db": float("nan")}, "place.snr_db is nan: must be a finite"),
        ({"kind": "noisy", "noise": []}, "place.noise is an empty list: must not be empty"),
        (
            ["quiet", {"kind": "noisy", "noise": ["bable"]}],
            "place.1.noise.0: there is no background noise 'bable': did you mean 'babble'?",
        ),
        ({"kind": "noisy", "noise": ["car", "car"]}, "place.noise.1: 'car' is listed twice"),
    ],
)
def test_a_place_that_is_none(written, text):
    with pytest.raises(ValidationError) as caught:
        corpus(place=written)
    (found,) = sentences(caught.value, type(corpus()))
    assert found.startswith(f"population.{text}")


def test_a_place_of_a_plug_in_that_is_gone():
    gone = PlaceSettings.model_construct(kind="moon", snr_db=None, noise=None)
    with pytest.raises(FedsimError, match=re.escape("there is no place 'moon': known: far,")):
        scene_of(gone, speaker("en", 0))
