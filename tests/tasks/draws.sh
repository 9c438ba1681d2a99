# Was it a lucky image? Three draws of the labelled image, each with three seeds.
python -m bench.run --methods sam,lora --datasets lesions --backbone tiny --protocol "demo(epochs=1)" --draws 0:3 --seeds 0:3

# Where draw 0 lies among the others, and what the variance of a run is made of: draws, seeds, test images.
python -m bench.tables --like draws
