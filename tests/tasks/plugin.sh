# My own method, scaled.py, against LoRA. The file lies in my folder (methods/README.md shows how it is written), not in the checkout.

# Does it keep what a method promises: its gradients, the frozen backbone, saving and loading, any backbone?
python -m bench.check --plugin scaled.py scaled

# Both on the same images, draws and seeds.
python -m bench.run --plugin scaled.py --methods sam,lora,scaled --datasets lesions --backbone tiny --protocol "demo(epochs=4)" --seeds 0,1

# The differences with LoRA, with intervals.
python -m bench.tables --like comparisons --against lora
