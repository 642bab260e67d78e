// An interactive figure: a picture that stands still, and over it what its controls move. figures.moving puts
// this beside each one, so that a page, a notebook and Colab run the same; without it the picture stays.
async (name, D) => {
  const box = document.getElementById(name), still = box.querySelector("img"), canvas = box.querySelector("canvas");
  const knobs = [...box.querySelectorAll("input, select")], button = box.querySelector("button");
  const says = box.querySelector(".says"), c = canvas.getContext("2d");
  const picture = (url) => {
    const image = new Image();
    image.src = url;
    return image.decode().then(() => image);
  };
  const numbers = (text) => new Uint16Array(Uint8Array.from(atob(text), (ch) => ch.charCodeAt(0)).buffer);
  const place = (shape) => shape.reduce((i, n, k) => i * n + (n > 1 ? +knobs[k].value : 0), 0);
  const kinds = {
    pictures(L, i) {
      const [left, top, width, height] = L.box;
      c.imageSmoothingEnabled = false;
      c.drawImage(L.data, 0, i * L.height, L.width, L.height, left, top, width, height);
    },
    dots(L, i) {
      for (let k = i * L.count; k < (i + 1) * L.count; k++) {
        c.beginPath();
        c.arc(L.data[2 * k] / 8 - 2048, L.data[2 * k + 1] / 8 - 2048, L.size / 2, 0, 7);
        c.fill();
      }
    },
    lines(L, i) {
      for (let m = i * L.count; m < (i + 1) * L.count; m++) {
        c.beginPath();
        for (let k = m * L.length; k < (m + 1) * L.length; k++)
          c.lineTo(L.data[2 * k] / 8 - 2048, L.data[2 * k + 1] / 8 - 2048);
        c.stroke();
      }
    },
  };
  const paint = () => {
    c.clearRect(0, 0, canvas.width, canvas.height);
    for (const L of D.layers) {
      c.save();
      c.beginPath();
      c.rect(...L.box);
      c.clip();
      c.fillStyle = c.strokeStyle = L.colour;
      c.globalAlpha = L.alpha;
      c.lineWidth = L.size;
      kinds[L.kind](L, place(L.shape));
      c.restore();
    }
    knobs.forEach((knob, k) => {
      const told = D.words[k][knob.value];
      if (knob.type === "range") {
        knob.setAttribute("aria-valuetext", told);
        knob.nextElementSibling.textContent = told;
      }
    });
    if (D.says.length) says.textContent = D.says[place(D.shape)];
  };
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "play";
  };
  const step = () => {
    if (+knobs[0].value === +knobs[0].max) return stop();
    knobs[0].value = +knobs[0].value + 1;
    paint();
  };
  const base = await picture(D.base);
  for (const L of D.layers) L.data = L.kind === "pictures" ? await picture(L.data) : numbers(L.data);
  [canvas.width, canvas.height] = [base.width, base.height];
  still.src = D.base;
  box.dataset.ready = "";
  knobs.forEach((knob) => knob.addEventListener("input", paint));
  button?.addEventListener("click", () => {
    if (timer) return stop();
    if (+knobs[0].value === +knobs[0].max) knobs[0].value = 0;
    button.textContent = "pause";
    timer = setInterval(step, D.pace);
  });
  paint();
}
