def test_x(varied_run):
    print(varied_run)
    import xarray as xr
    with xr.open_datatree(varied_run/"chips.zarr") as t: print(t); print(t["train"].status.values)
    assert 0
