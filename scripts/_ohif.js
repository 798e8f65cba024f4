// OHIF's app-config.js in scripts/hospital_smoke.sh: reads Orthanc, opens ?study=UID, then the series whose name holds
// ?show=WORD, accepts its segmentation, and goes to the middle slice.
window.config = {
  routerBasename: "/ohif/", extensions: [], modes: [], showStudyList: true, useSharedArrayBuffer: "FALSE",
  investigationalUseDialog: {option: "never"}, defaultDataSourceName: "dicomweb",
  dataSources: [{namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "dicomweb", configuration: {
    name: "Orthanc", friendlyName: "Orthanc", qidoRoot: "/dicom-web", wadoRoot: "/dicom-web", imageRendering: "wadors",
    thumbnailRendering: "wadors", enableStudyLazyLoad: true, bulkDataURI: {enabled: true}}}],
};
const asked = new URLSearchParams(location.search);
history.replaceState(null, "", "/ohif/viewer?StudyInstanceUIDs=" + asked.get("study"));
const find = (kind, test) => [...document.querySelectorAll(kind)].filter(one => test.test(one.innerText)).pop();
let seconds = 0;
setInterval(() => {
  find("button", /^Yes$/)?.click();
  const series = find("div", new RegExp("^.*" + asked.get("show")));
  if (!series || !document.querySelector("canvas")) return;
  seconds += 1;
  if (seconds === 5) series.dispatchEvent(new MouseEvent("dblclick", {bubbles: true}));
  if (seconds !== 20) return;
  const view = cornerstone.getRenderingEngines()[0].getViewports()[0];
  view.scroll(Math.floor(view.getNumberOfSlices() / 2));
}, 1000);
