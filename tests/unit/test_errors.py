"""What a wrong input says."""

from rlhf_kit.errors import InputError


def test_the_message_names_the_field_the_value_and_the_mend():
    error = InputError("reward_model.num_labels", 2, "expected 1: pass a model with a single scalar head")
    assert str(error) == "reward_model.num_labels is 2, expected 1: pass a model with a single scalar head"
    assert (error.field, error.value) == ("reward_model.num_labels", 2)


def test_a_path_stays_whole_and_a_whole_document_does_not():
    path = "/data/" + "folder/" * 20 + "model"
    assert repr(path) in str(InputError("--model", path, "expected a folder"))
    shown = str(InputError("text", "word " * 1_000, "expected less"))
    assert len(shown) < 240
    assert "..." in shown
