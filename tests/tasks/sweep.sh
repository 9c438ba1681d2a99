# LoRA's rank by its learning rate: every combination, a table, a heat map, and which is best on held-out training images.
PROTOCOL="demo(lr=1e-3|1e-2, epochs=4, selections=['last','val'])"     # with 'val', held-out images are evaluated beside
python -m bench.run --methods "lora(rank=4|8)" --datasets lesions --backbone tiny --protocol "$PROTOCOL" --seeds 0,1
python -m bench.tables --rows rank --columns lr
python -m bench.figures --rows rank --columns lr
