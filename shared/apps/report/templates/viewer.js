(async () => {
  "use strict";
  const told = document.getElementById("viewer-state");
  const say = (text, state) => { told.textContent = text; document.body.dataset.viewer = state; };
  try {
    const library = globalThis.niivue;
    if (!document.createElement("canvas").getContext("webgl2")) {
      say("This browser has no WebGL 2: look at the pictures.", "none");
      return;
    }
    const volumes = JSON.parse(document.getElementById("volumes").textContent);
    const images = volumes.filter((volume) => volume.kind === "image");
    const maps = volumes.filter((volume) => volume.kind !== "image");
    const pick = (id) => document.getElementById(id);
    const viewer = new library.Niivue({ dragAndDropEnabled: false, isRadiologicalConvention: true, logLevel: "fatal", show3Dcrosshair: false,
      backColor: [0, 0, 0, 1], loadingText: "", crosshairWidth: 0.6, crosshairWidthUnit: "mm" });
    await viewer.attachToCanvas(pick("volume"));
    // vermilion speaks for the positive class, blue against it
    const ramp = (r, g, b) => ({ R: [r, r], G: [g, g], B: [b, b], A: [0, 255], I: [0, 255] });
    viewer.addColormap("for", ramp(213, 94, 0));
    viewer.addColormap("against", ramp(0, 114, 178));
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    const load = (volume, options) => library.NVImage.loadFromBase64({ base64: volume.data, name: volume.name + ".nii.gz", ...options });
    const show = async () => {
      const image = images[pick("image").value], map = maps[pick("map").value];
      const opacity = Number(pick("opacity").value) / 100;
      while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
      if (image) viewer.addVolume(await load(image, { colormap: "gray" }));
      if (map) {
        const options = map.kind === "labels" ? { colormap: "random" }
          : { colormap: map.signed ? "for" : "inferno", cal_min: map.most / 100, cal_max: map.most };
        if (map.signed) Object.assign(options, { colormapNegative: "against", cal_minNeg: -map.most / 100, cal_maxNeg: -map.most });
        viewer.addVolume(await load(map, { ...options, opacity: image ? opacity : 1 }));
      }
      viewer.setInterpolation(Boolean(map) && map.kind === "labels"); // colours between two labels mean nothing
      if (map) viewer.scene.crosshairPos = viewer.mm2frac(map.place); // where the map is strongest
      viewer.updateGLVolume();
      say("", "ready");
    };
    pick("map").addEventListener("change", () => {
      const map = maps[pick("map").value];
      if (map && images[map.image]) pick("image").value = map.image;
      show();
    });
    pick("image").addEventListener("change", show);
    pick("opacity").addEventListener("input", () => {
      const last = viewer.volumes.length - 1;
      if (last > 0) viewer.setOpacity(last, Number(pick("opacity").value) / 100);
    });
    const steps = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    pick("volume").addEventListener("keydown", (event) => {
      if (!steps[event.key]) return;
      event.preventDefault();
      viewer.moveCrosshairInVox(...steps[event.key]);
    });
    viewer.onLocationChange = (place) => { pick("place").textContent = place.string; };
    await show();
  } catch (error) {
    say("The viewer cannot show these volumes: look at the pictures. (" + error + ")", "error");
  }
})();
