# Twenty images of my own, data/lesions/images, with their masks, data/lesions/masks: which method segments such images best?
# Shown for the tiny SAM, minutes on a laptop. With SAM itself: no --backbone tiny, and `clean` instead of `demo(epochs=4)`.

# Say what the images are. A fifth of them is for testing; of the other 16 a quarter is held out, and chooses the learning rates.
cat > data/lesions.toml <<'TOML'
title = "My lesions"
images = "lesions/images"
masks = "lesions/masks"
threshold = 127
test_share = 0.2
TOML

# What would a run see of them? It names masks that are missing, broken or not binary.
python -m datasets.prepare verify lesions

# Every method gets the same number of trials; no test image is read.
ASKED="--datasets lesions --backbone tiny"
python -m bench.tune $ASKED --methods lora,vpt_deep --protocol "demo(epochs=4)" --trials 3 --name lesions

# The protocol's rates and the chosen ones, two seeds each, side by side.
python -m bench.run $ASKED --methods sam,lora,vpt_deep --protocol "demo(epochs=4),demo(epochs=4,tuned=lesions)" --seeds 0,1
python -m bench.tables --like tuning
