import torch

from midisynth.audio.crossfade import CrossFade


def test_cross_fade_joins_what_overlaps():
    whole = torch.randn(30, 2)
    fade = CrossFade(4)
    joined = [fade.push(whole[:12]), fade.push(whole[8:20]), fade.push(whole[16:28]), fade.finish()]
    torch.testing.assert_close(torch.cat(joined), whole[:28])
    fade = CrossFade(3)
    joined = torch.cat([fade.push(torch.zeros(5, 1)), fade.push(torch.ones(5, 1)), fade.finish()])
    torch.testing.assert_close(joined[:, 0], torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]))
    fade = CrossFade(0)
    assert torch.cat([fade.push(whole[:5]), fade.push(whole[5:9]), fade.finish()]).equal(whole[:9])
