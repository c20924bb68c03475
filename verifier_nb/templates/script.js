// The page works without this script; it adds the filter of the mistakes and sorts tables by a click on a heading.
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  function filterMistakes(form) {
    const items = all('#mistakes .mistake').map(element => ({element, text: element.textContent.toLowerCase()}));
    const said = document.getElementById('shown');
    const sure = document.getElementById('sure-value');

    const fits = ({element, text}) => {
      const wanted = form.elements;
      const words = wanted.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const {kind, type, sure} = element.dataset;
      if (wanted.kind.value && kind !== wanted.kind.value) return false;
      if (wanted.type.value && type !== wanted.type.value) return false;
      if (Number(sure) < Number(wanted.sure.value)/100) return false;
      return words.every(word => text.includes(word));
    };

    const apply = () => {
      for (const item of items) item.element.hidden = !fits(item);
      const shown = items.filter(item => !item.element.hidden).length;
      sure.textContent = form.elements.sure.value + ' %';
      said.textContent = shown + ' of ' + items.length + ' mistakes shown';
    };

    form.hidden = false;
    form.addEventListener('input', apply);
    form.addEventListener('submit', event => event.preventDefault());
    apply();
  }

  const isEmpty = value => value === '' || value === '–';

  // Empty cells come last in either direction; numbers are compared as numbers, all else as words.
  function compare(a, b, up) {
    if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
    const difference = Number(a) - Number(b);
    const order = Number.isNaN(difference) ? a.localeCompare(b) : difference;
    return up ? order : -order;
  }

  function sortBy(table, heading, column) {
    const up = heading.getAttribute('aria-sort') !== 'ascending';
    for (const other of all('thead th', table)) other.removeAttribute('aria-sort');
    heading.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = table.tBodies[0];
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    [...body.rows].sort((a, b) => compare(value(a), value(b), up)).forEach(row => body.append(row));
  }

  function makeSortable(table) {
    all('thead th', table).forEach((heading, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.className = 'sort';
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener('click', () => sortBy(table, heading, column));
    });
  }

  const form = document.getElementById('filter');
  if (form) filterMistakes(form);
  all('table.sortable').forEach(makeSortable);
  addEventListener('beforeprint', () => all('details').forEach(part => { part.open = true; }));
})();
